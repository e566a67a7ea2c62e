"""Families in the plane, written in NumPy, and how they are drawn."""
