"""A support of episodes, which the encoder collects itself."""
