"""The meta-objective, and the optimisers that take steps on it."""
