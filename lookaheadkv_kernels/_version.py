"""The version of the package, its wheels and its libraries: the only place that states it."""

__version__ = "0.1.0"
