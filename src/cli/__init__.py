"""The command line: one file for each group of commands, and the grouping of options.

A command parses its options and calls the public interface of the package, which does the work.
"""
