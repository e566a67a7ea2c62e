"""Processes that learn the tasks of a meta-batch side by side."""
