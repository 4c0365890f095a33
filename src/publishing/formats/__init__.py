"""Formats of systems that other libraries publish, one file each, and their contract."""
