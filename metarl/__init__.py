"""Meta-reinforcement learning for Stable-Baselines3."""

from metarl.version import __version__

__all__ = ["__version__"]
