"""Recipes of toy chains."""

CHAIN = """
tokenizers:
  coarse: {name: toy-codec, hop: 400}
  fine: {name: toy-codec, hop: 100}
conditioners:
  text: toy-letters
stages:
  fine: {generator: toy-echo, target: fine, given: [coarse], window: 1.0, overlap: 0.3}
  coarse: {generator: toy-dice, target: coarse, given: [text], window: 2.0}
data: toy-sines
"""
