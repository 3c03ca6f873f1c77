"""Drifting fields: where each generated sample should go."""
