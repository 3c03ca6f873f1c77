"""What every network of the book shares, and no subject.

Read `functional` (a network as a function of one flat vector), `layers`, `recipe` and
`training`, in this order. `checks` refuses what no measure can take; `closure` finds what a
function's results depend on.
"""
