"""Systems: parts that fit together, built from a plan; what they generate; how they are saved and loaded.

Training and measuring a system are elsewhere, in ``training`` and ``evaluation``.
"""
