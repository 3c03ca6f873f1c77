"""Networks, one file per model; each reads top to bottom like the paper it comes from."""
