"""Collecting episodes, and packing them into the samples that losses take."""
