"""Policies as pure functions of named tensors, and the distributions that they return."""
