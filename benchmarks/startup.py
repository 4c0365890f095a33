"""Seconds until commands answer, and until a trained run begins to generate.

    python benchmarks/startup.py --run runs/demo

The start of a generation is held against `import torch, lightning` alone, in turns: it ends with the first step of the
first stage, after importing, checking and loading the run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from measuring import add_save, in_turns, save

COMMAND = "import sys; sys.argv = ['partita', *{arguments!r}]; from partita.cli.main import main; main()"
UNTIL_GENERATION = """
import os
from partita.generators.autoregressive import Autoregressive
from partita.generators.diffusion import Diffusion
Autoregressive.generate = Diffusion.generate = lambda *inputs, **options: os._exit(0)
"""


def run(script: str) -> None:
    environment = os.environ | {"GOMP_SPINCOUNT": "1000"}
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment)


def command(arguments: Sequence[str]) -> str:
    return COMMAND.format(arguments=list(arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder of a trained run; by default, only the commands are measured")
    parser.add_argument("--runs", type=int, default=7)
    add_save(parser)
    options = parser.parse_args()
    scripts = {
        "python": "pass",
        "partita --help": command(["--help"]),
        "partita list": command(["list"]),
    }
    if options.run is not None:
        generate = command(["generate", str(options.run), "a slow chorale", "-o", "unused.wav"])
        scripts["import torch, lightning"] = "import os, torch, lightning; os._exit(0)"
        scripts["generation starts"] = UNTIL_GENERATION + generate
    times = in_turns({name: partial(run, script) for name, script in scripts.items()}, options.runs)
    rows = [{"what": name, "seconds": statistics.median(values)} for name, values in times.items()]
    if options.run is not None:
        pairs = zip(times["generation starts"], times["import torch, lightning"], strict=True)
        rows.append(
            {"what": "generation starts after the imports", "seconds": statistics.median(a - b for a, b in pairs)}
        )
    for row in rows:
        print(f"{row['what']}: {row['seconds']:.3f} s")
    if options.save:
        save("startup", rows)


if __name__ == "__main__":
    main()
