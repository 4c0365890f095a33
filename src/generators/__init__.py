"""Generators, which are the stages of a system."""
