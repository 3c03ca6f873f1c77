"""A transformer that groks modular arithmetic, and the circle in its average gradient outer
product.

Read `modular` (the task), `grokker` (the network), `agop`, `circulant`, `experiment` (one network)
and `protocol` (all of them), in this order. `networks` makes the trained networks that other
chapters start from.
"""
