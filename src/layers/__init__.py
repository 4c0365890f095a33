"""Building blocks that parts share: tensors in, tensors out.

Nothing here is registered, has weights of its own to load, or knows a recipe.
"""
