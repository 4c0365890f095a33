"""Backbones: causal networks that autoregressive stages run on."""
