"""vstore: a virtual storage target; Python decides, C moves bytes."""

__version__ = "0.1.0"
