"""Sharing systems on the Hugging Face Hub: model cards, removal of private data, uploads and copies.

The downloads themselves are in ``storage``.
"""
