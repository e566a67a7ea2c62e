"""Views of a family: a single Gymnasium environment, a vectorised one, and one that shows the task."""
