"""fieldbook: experiments on how networks learn, as a Jupyter book over a thin torch library."""

__version__ = "0.1.0"
