"""Recipes: finding, composing and checking them, from YAML text to a plan.

Building the parts of a plan belongs in ``system``.
"""
