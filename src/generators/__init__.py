"""Generators, the kinds of stages: one file each, their contract, and the networks they run on.

Running a chain of stages, window by window, is in ``system``. Layers that stages share are in ``layers``.
"""
