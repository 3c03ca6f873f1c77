"""Generators trained by drifting: each sample is moved a little towards the data, and learnt.

Read `kernel` (the field), `learned`, `loss`, `generators` and `experiment`, in this order.
`evaluation` measures checkpoints with `judge`, `frechet` and `distances`; `audit` looks at fields.
"""
