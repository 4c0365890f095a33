"""Loggers of work that several processes do together."""

from __future__ import annotations

import logging

from lightning.fabric.utilities.rank_zero import rank_zero_only


def shared_logger(name: str) -> logging.Logger:
    """The logger of a module whose lines concern all processes that train together: only the first one speaks."""
    logger = logging.getLogger(name)
    logger.addFilter(_is_first)
    return logger


def _is_first(record: logging.LogRecord) -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0
