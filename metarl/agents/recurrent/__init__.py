"""Policies with a memory, and how they learn on trials."""
