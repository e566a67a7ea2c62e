"""Experiments of many runs, as papers report them: what is run, how it is tested, its record, and what it shows.

The runs of an experiment are data, ``<name>.yml`` in this folder; what is made of them is a module of ``reports``.
"""

from pathlib import Path

EXPERIMENTS = Path(__file__).parent
"""The folder of the YAML files."""


def names() -> list[str]:
    """Return the names of the experiments."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yml"))
