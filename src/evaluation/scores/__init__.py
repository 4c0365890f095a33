"""The scores: one file each, found by their registered names. What a single metric computes is in ``metrics``."""
