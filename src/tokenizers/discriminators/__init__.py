"""Discriminators: the adversaries that a codec is trained against."""
