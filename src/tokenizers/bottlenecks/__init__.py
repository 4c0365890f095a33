"""Bottlenecks: what a codec does to the frames between its encoder and its decoder."""
