"""Supervised tasks as environments of horizon 1: the observation is an input, the action a prediction."""
