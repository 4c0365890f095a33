"""Where examples come from: the corpus, folders and torch data sets, and the fields that clips carry.

The batches that a part trains on are built in ``training``. Audio files are decoded in ``storage``.
"""
