"""HTML pages with players, plots and tables, rendered from values that other rooms compute.

Nothing here measures or generates.
"""
