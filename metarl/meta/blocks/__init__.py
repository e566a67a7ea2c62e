"""Blocks of tasks: they learn, keep what they collected, and answer with sums over their tasks."""
