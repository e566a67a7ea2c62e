"""Imitation as environments of horizon 1: the observation is a state that an expert visits, the action what it does."""
