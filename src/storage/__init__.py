"""Bytes: files replaced as a whole, strangers' files read safely, audio files, downloads, published checkpoints.

Nothing here knows what a part or a recipe is. Publishing is in ``publishing``; what a saved system must hold is checked
in ``system``.
"""
