"""The command line as its entry point runs it."""

import multiprocessing
import os
import sys

import pytest
import torch

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


def fork(*arguments, output):
    """A process that runs a command and writes to a file. It is forked, so that it need not import everything again."""
    process = multiprocessing.get_context("fork").Process(target=_run_forked, args=(arguments, output))
    process.start()
    return process


def _run_forked(arguments, output):
    torch.set_num_threads(1)  # OpenMP's other threads are not forked
    os.dup2(os.pipe()[0], 0)  # it never ends, as long as the process lives
    with output.open("a") as sys.stdout:
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        sys.stderr, sys.argv = sys.stdout, ["partita", *map(str, arguments)]
        cli.main()
