"""The command line: one file for each group of commands. What a command does is in the other rooms."""
