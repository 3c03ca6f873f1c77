"""What every chapter does around its subject: parameters in, rows, claims and figures out.

Read `parameters`, `tables` (rows that survive a kill), `results` (a chapter's run) and `publish`,
in this order. `paths` alone knows folders, `figures` alone knows matplotlib.
"""
