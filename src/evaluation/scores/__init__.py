"""The scores: one file for each, found by its registered name. The metrics that they use are in ``metrics``."""
