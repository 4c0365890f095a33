"""Sharing a system on the Hugging Face Hub: model cards, what must not get out, the upload.

Downloading is in ``storage``.
"""
