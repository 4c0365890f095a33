"""Writes into docs/finetuning.md in how many steps a trained system learns other music, next to one that starts anew.

    python benchmarks/finetuning.py runs/anew runs/whole runs/lora

The first run starts anew; its lowest validation loss is the goal of the others. All are runs with one stage, on the
same data and with the same tokenizers. The block between ``<!-- measured -->`` and ``<!-- end measured -->`` is
replaced, and the plot is docs/finetuning/loss.png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from measuring import machine
from system_page import filled

from partita.core.part_key import PartKey
from partita.pages.plots import curves_figure, png
from partita.pages.tables import markdown
from partita.recipe.plan import load_recipe
from partita.system.adapters import holds_adapters, read_adapters
from partita.system.assembly import INDEX
from partita.system.system import System
from partita.training.report import read_curves

PAGE = Path(__file__).parents[1] / "docs" / "finetuning.md"
PLOT = PAGE.parent / "finetuning" / "loss.png"


def outline(folder: Path) -> System:
    """The system of a run, without weights."""
    return System.outline(load_recipe(folder / INDEX))


def curve(folder: Path) -> tuple[list[float], list[float]]:
    """Steps and validation losses of the stage of a run."""
    (stage,) = outline(folder).stages
    return read_curves(folder, PartKey.of("stages", stage))["val/loss"]


def trained(folder: Path) -> tuple[int, int]:
    """The number of parameters that a run trained, and that of its stage."""
    (stage,) = outline(folder).stages.values()
    own = stage.num_own_parameters
    return sum(one.num_parameters for one in read_adapters(folder)) if holds_adapters(folder) else own, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anew", type=Path, help="run that starts anew")
    parser.add_argument("runs", type=Path, nargs="+", help="runs that start from a trained system")
    options = parser.parse_args()
    folders = [options.anew, *options.runs]
    curves = {folder.name: curve(folder) for folder in folders}
    goal, whole = min(curves[options.anew.name][1]), curves[options.anew.name][0][-1]
    rows = []
    for folder in folders:
        steps, losses = curves[folder.name]
        reached = next((step for step, loss in zip(steps, losses, strict=True) if loss <= goal), math.nan)
        count, own = trained(folder)
        rows.append(
            [
                folder.name,
                f"{count / 1e6:.2f} M ({count / own:.1%})",
                f"{losses[0]:.3f} at step {steps[0] + 1:,.0f}",
                f"{min(losses):.3f}",
                "not reached" if math.isnan(reached) else f"{reached + 1:,.0f} ({reached / whole:.0%})",
            ]
        )
    header = ["run", "trained parameters", "first validation", "lowest loss", f"steps until the loss is {goal:.3f}"]
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.write_bytes(png(curves_figure(curves, "validation loss (nats)"), dpi=110))
    plot = f"![Validation losses over steps]({PLOT.parent.name}/{PLOT.name})"
    text = "\n\n".join([markdown(header, rows), plot, f"`python benchmarks/finetuning.py`, at {machine()['commit']}."])
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), {"measured": text}), encoding="utf-8")


if __name__ == "__main__":
    main()
