"""Metrics, as torchmetrics."""
