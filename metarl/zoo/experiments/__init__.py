"""Experiments of many runs: what is run (a YAML file each), how it is tested, its record, and what it shows."""
