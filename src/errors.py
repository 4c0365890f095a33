"""Errors that are messages: what is wrong, where, and what to do."""

from __future__ import annotations


class PartitaError(Exception):
    """A foreseeable mistake. The command line prints the message and exits with status 2, without a traceback."""
