"""Where spectra come from: synthesised from an atmosphere, or read from a file.

Read `atmosphere`, `synthesis`, `emulator` and `observation`, in this order: light, spectrum,
stand-in, noise. `dataset` is what networks are trained on; `spectra_hdf5` finds and converts files.
"""
