"""The command line as its entry point runs it."""

import sys

import pytest

from partita.cli import main as cli


def run(*arguments, monkeypatch, capfd):
    """Status and output of a command."""
    monkeypatch.setattr(sys, "argv", ["partita", *map(str, arguments)])
    monkeypatch.setattr(cli.out, "width", 200)
    monkeypatch.setattr(cli.err, "width", 200)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capfd.readouterr()
    return stop.value.code or 0, captured.out + captured.err
