"""Mazes: where a discrete agent has to find out where the walls are, and the search that knows."""
