"""Recipes and presets: YAML files only, shipped inside the package."""
