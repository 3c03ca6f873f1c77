"""Samplers of parameter space, each a build -> init, update pair, and what they estimate.

Read `sgmcmc` (one step), `preconditioners`, `llc` and `symmetry`; for the entropy, `wang_landau`.
`known` and `potentials` hold what is known exactly; `rescaled`, `ground_truth` and `landscape` are
the experiments.
"""
