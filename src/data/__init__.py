"""Data: where examples come from."""
