"""Checkpoint formats: how weights saved by other libraries become the state of a tokenizer."""
