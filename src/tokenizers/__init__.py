"""Tokenizers: audio to representations and back."""
