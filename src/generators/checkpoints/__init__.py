"""Checkpoint formats: how weights that other libraries saved become the state of a stage."""
