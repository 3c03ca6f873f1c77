"""What every chapter does around its subject: parameters in, rows, claims and figures out.

Read `chapter` (a chapter's run), `tables` (rows that survive a kill), `parameters` and `publish`,
in this order. `paths` alone knows folders, `figures` alone knows matplotlib.
"""
