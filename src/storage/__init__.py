"""Files and downloads: atomic replacement, safe reading of files from strangers, audio files and checkpoints.

Nothing here knows what a part or a recipe is. Publishing is in ``publishing``; what a saved system must hold is checked
in ``system``.
"""
