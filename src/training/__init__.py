"""Training: the data of a part, its trainer and callbacks, runs of whole systems and their reports.

How a single part computes its loss is in its own file, in the room of its family.
"""
