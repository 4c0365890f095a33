"""Bottlenecks: the quantization or constraint between a codec's encoder and decoder."""
