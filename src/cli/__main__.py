"""Entry point of ``python -m partita.cli``."""

from .main import main

main()
