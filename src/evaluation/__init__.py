"""Measuring and comparing systems: evaluations and their scores, ablations, listening tests.

The metrics themselves, which know no system, are in ``metrics``; pages are drawn with ``pages``.
"""
