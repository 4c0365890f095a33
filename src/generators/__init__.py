"""Generators: the stages of a system."""
