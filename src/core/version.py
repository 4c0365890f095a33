"""The version of the library."""

from importlib.metadata import version

__version__ = version("partita")
