"""The version, of the package and of what it writes."""

__version__ = "0.1.0"
