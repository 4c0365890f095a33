"""Tokenizers turn audio into codes or latents and back: one file each, their contract, and what codecs are made of.

Losses and layers that codecs share with others are in ``layers``.
"""
