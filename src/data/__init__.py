"""Where examples come from: the corpus, folders and torch data sets, and the fields that clips carry.

Turning clips into what a part trains on is in ``training``. Reading an audio file is in ``storage``.
"""
