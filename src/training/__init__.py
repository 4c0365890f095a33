"""Training: the data of a part, its trainer and callbacks, runs of whole systems and their reports.

The loss of a part is computed in its own file, in the room of its family.
"""
