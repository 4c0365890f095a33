"""Tokenizers: they turn audio into representations and back.

One file holds one tokenizer. The components of codecs are in the folders ``autoencoders``, ``bottlenecks`` and
``discriminators``, and adversarial training is in ``adversarial``.
"""
