"""Samplers of parameter space, each as a build -> init, update pair, and what they estimate."""
