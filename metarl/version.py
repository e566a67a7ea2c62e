"""The version, in one place: setup.py, checkpoints and the command line read it here."""

__version__ = "0.1.0"
