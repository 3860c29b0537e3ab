"""The version of this package, which is written into models, too."""

__version__ = "0.1.0"
