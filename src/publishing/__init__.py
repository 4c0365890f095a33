"""Sharing a system on the Hugging Face Hub: model cards, removing private data, the upload.

Downloading is in ``storage``.
"""
