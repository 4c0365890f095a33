"""Recipes: finding, composing and checking them, from text to a plan.

Nothing here builds a part: that is ``system``.
"""
