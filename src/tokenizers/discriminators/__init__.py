"""Discriminators: the adversaries a codec is trained against."""
