"""Denoisers: the networks of diffusion stages."""
