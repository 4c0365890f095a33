"""Tokenizers: audio to representations and back.

One file holds one tokenizer. What a codec is made of is in the folders ``autoencoders``, ``bottlenecks`` and
``discriminators``, and the training of whatever makes audio against a discriminator in ``adversarial``.
"""
