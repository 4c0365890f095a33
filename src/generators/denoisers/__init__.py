"""Denoisers: networks that diffusion stages run on."""
