"""Where the command line writes."""

from __future__ import annotations

import sys

from rich.console import Console

# Tables that go to a file or a pipe are not squeezed into 80 columns.
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True)
