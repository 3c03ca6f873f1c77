"""A transformer that groks modular arithmetic, and the circle in its average gradient outer
product.

Read `modular` (the task), `grokker` (the network), `agop`, `circulant` and `experiment`, in this
order. `networks` makes the trained networks that other chapters start from.
"""
