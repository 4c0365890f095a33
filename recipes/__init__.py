"""Recipes and presets as YAML files, which are shipped inside the package."""
