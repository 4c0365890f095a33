"""Conditioners: what a person supplies, to conditions."""
