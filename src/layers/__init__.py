"""Building blocks that parts share: tensors in, tensors out."""
