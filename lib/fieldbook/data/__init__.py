"""Data sets of the experiments: synthesised or read, always from an explicit seed."""
