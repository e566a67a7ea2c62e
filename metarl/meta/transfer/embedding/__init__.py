"""Latent embedding optimisation: an encoder, a relation network, a decoder, and steps in what they say."""
