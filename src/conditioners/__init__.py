"""Conditioners: they turn what a person supplies into conditions."""
