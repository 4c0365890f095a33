"""Pages with players, plots and tables, drawn from values that are measured elsewhere.

Nothing here measures or generates. Each page is a template beside the function that fills it.
"""
