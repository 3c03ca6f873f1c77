"""A patch transformer on ticks whose best forecast is known, and the law of its loss.

Read `market`, `transforms` and `patches` (the data), `transformer`, `configs` and `runs`, then
`law`.
"""
