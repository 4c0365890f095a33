"""Conditioners turn what a person supplies (text, audio, chords …) into conditions: one file each.

The folders hold the towers that a joint embedding is made of. How a condition enters a stage belongs to the stage, in
``generators`` and ``layers``. The fields that conditioners read are in ``data``.
"""
