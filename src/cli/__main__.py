"""``python -m partita.cli``."""

from .main import main

main()
