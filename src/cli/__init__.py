"""The command line: one file for each group of commands, and how their options are declared.

A command parses its options and calls the public interface of the package. What it does is in the other rooms.
"""
