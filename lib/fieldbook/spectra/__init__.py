"""What networks read in the spectra of stars: labels, or the spectrum under its noise.

Read `vit` and `blindspot` (the networks), `information` (what can be known), `probes` and
`denoising`. `spectroscopy` is what the chapters do with them.
"""
