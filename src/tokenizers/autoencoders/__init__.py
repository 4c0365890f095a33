"""Autoencoders: the encoder and decoder of a codec, from audio to frames and back."""
