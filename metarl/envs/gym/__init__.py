"""Families made of Gymnasium environments: any id, class or function, with parameters that differ by task."""
