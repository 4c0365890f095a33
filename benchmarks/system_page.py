"""Writes what was measured into the page of a system, docs/systems/NAME.md, with plots and clips beside it.

    python benchmarks/system_page.py musiclm --run runs/musiclm-tiny
    python benchmarks/system_page.py musiclm --run runs/musiclm-tiny --ablation runs/ablation-musiclm-tiny

The page is written by hand, but for the blocks between ``<!-- NAME -->`` and ``<!-- end NAME -->``, which are replaced:

- ``diagram``: the chain of the recipe, as a diagram;
- ``sizes``: its parts and their parameters at full size;
- ``tiny``: the parts of the run, and how long each was trained;
- ``curves``: the validation losses of the run;
- ``scores``: the scores of the run's evaluation;
- ``clips``: generated clips with their spectrograms;
- ``ablation``: the tables of an ablation.

A block without its source, such as an ablation that is not given, stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile
import torch

from partita.pages.plots import curves_figure, png, spectrogram_figure
from partita.pages.tables import markdown
from partita.recipe.plan import load_recipe
from partita.storage.audio_file import write_audio
from partita.system.system import System, load
from partita.training.report import read_curves

SYSTEMS = Path(__file__).parents[1] / "docs" / "systems"
MOST_BYTES = 200_000
"""Size that no clip may exceed."""


def diagram(system: System) -> str:
    """The chain as a Mermaid flowchart: what is given to each stage, what it generates, and what makes it audible."""
    lines = ["```mermaid", "flowchart LR"]
    for name, conditioner in system.conditioners.items():
        lines.append(f'  {name}["{name}<br/>{conditioner.registered_name}"]')
        lines += [f"  {field}_in([{field}]) --> {name}" for field in conditioner.inputs]
    for name, stage in system.stages.items():
        plan = system.plan.stages[name]
        lines.append(f'  {name}_stage[["{name}<br/>{plan.named_targets}, {plan.window:g} s"]]')
        for given, one in stage.given.items():
            lines.append(f"  {_source(system, given)} -- {one.fusion} --> {name}_stage")
    for end in system.plan.ends:
        codec = system.tokenizers[end.tokenizer].registered_name
        lines.append(f'  {list(system.stages)[-1]}_stage --> decoder["{end.tokenizer}<br/>{codec}"] --> audio([audio])')
    return "\n".join([*lines, "```"])


def _source(system: System, given: str) -> str:
    """The node of what a stage is given: a conditioner, or the stage that generates it."""
    if given in system.conditioners:
        return given
    for name, stage in system.plan.stages.items():
        if any(str(target) == given for target in stage.targets):
            return f"{name}_stage"
    raise ValueError(f"nothing generates {given}")


def sizes(system: System) -> str:
    """All parts with their outputs and parameters."""
    rows = [[f"`{row.key}`", row.name, row.spec, f"{row.parameters / 1e6:,.1f} M"] for row in system.summary()]
    return markdown(["part", "kind", "output", "parameters"], rows)


def trained(system: System, run: Path) -> str:
    """The parts of a run, with the steps and minutes of their training."""
    rows, total = [], 0.0
    for row in system.summary():
        _, speeds = read_curves(run, row.key).get("speed/steps_per_second", ([], []))
        steps = system.training_order[row.key].fit_options.steps
        minutes = steps * statistics.fmean(1 / speed for speed in speeds) / 60 if speeds else 0.0
        total += minutes
        rows.append(
            [f"`{row.key}`", row.name, row.spec, f"{row.parameters / 1e6:.2f} M", f"{steps:,}", f"{minutes:.1f}"]
        )
    parameters = sum(part.num_parameters for part in system.parts.values())  # with the parts inside them
    rows.append(["all", "", "", f"{parameters / 1e6:.1f} M", "", f"{total:.0f}"])
    return markdown(["part", "kind", "output", "parameters", "steps", "minutes"], rows)


def curves(system: System, run: Path, folder: Path) -> str:
    """A plot of the losses of each part."""
    lines = []
    for key in system.training_order:
        found = {name: curve for name, curve in read_curves(run, key).items() if name.endswith("/loss")}
        if found:
            path = folder / f"loss-{key.replace('/', '-').replace('.', '-')}.png"
            path.write_bytes(png(curves_figure(found, str(key))))
            lines.append(f"![Loss of {key}]({folder.name}/{path.name})")
    return "\n".join(lines)


def scores(evaluation: Mapping[str, Any]) -> str:
    """The scores beside those of real and coded clips and of chance."""
    rows = []
    for name, row in evaluation["metrics"].items():
        interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        others = [f"{row[key]:.3f}" if key in row else "" for key in ("real", "codec", "chance")]
        p = f"{row['p']:.2g}" if "p" in row else ""
        rows.append([name, row["better"], f"{row['value']:.3f}{interval}", *others, p, str(row["clips"])])
    return markdown(["score", "better", "generated", "real", "coded", "chance", "p", "clips"], rows)


def clips(evaluation: Path, captions: list[str], count: int, folder: Path) -> str:
    """Clips at equal distances in an evaluation, each with its caption and its spectrogram."""
    lines = []
    for number in range(count):
        place = number * len(captions) // count
        caption = captions[place]
        samples, rate = soundfile.read(evaluation / "clips" / f"{place:05}.flac", dtype="float32", always_2d=True)
        sound, image = folder / f"clip-{number}.ogg", folder / f"clip-{number}.png"
        write_audio(sound, samples.T, rate)
        if sound.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{sound} has {sound.stat().st_size:,} bytes: evaluate shorter clips")
        image.write_bytes(png(spectrogram_figure(torch.from_numpy(samples.T), rate)))
        lines += [
            f"*{caption}* ([listen]({folder.name}/{sound.name}))",
            "",
            f"![Spectrogram]({folder.name}/{image.name})",
            "",
        ]
    return "\n".join(lines).rstrip()


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The text of a page with the contents of its blocks replaced.

    >>> print(filled("<!-- a --><!-- end a -->", {"a": "new"}))
    <!-- a -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- end a -->
    """
    for name, content in blocks.items():
        pattern = re.compile(rf"<!-- {name} -->.*?<!-- end {name} -->", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"the page has no block {name}: add <!-- {name} --> and <!-- end {name} -->")
        text = pattern.sub(lambda _: f"<!-- {name} -->\n\n{content}\n\n<!-- end {name} -->", text)  # noqa: B023
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a recipe with a page, such as musiclm")
    parser.add_argument("--run", type=Path, help="a trained run of its sibling")
    parser.add_argument("--evaluation", type=Path, help="an evaluation of the run; by default the one in its folder")
    parser.add_argument("--ablation", type=Path, help="folder of an ablation")
    parser.add_argument("--clips", type=int, default=4, help="number of clips to show")
    parser.add_argument("changes", nargs="*", help="changes of the recipe, such as data.path=/music")
    options = parser.parse_args()
    page, folder = SYSTEMS / f"{options.name}.md", SYSTEMS / options.name
    folder.mkdir(parents=True, exist_ok=True)
    system = System.outline(load_recipe(options.name, options.changes))
    blocks = {"diagram": diagram(system), "sizes": sizes(system)}
    if options.run:
        run = load(options.run)
        blocks |= {"tiny": trained(run, options.run), "curves": curves(run, options.run, folder)}
        evaluation = options.evaluation or options.run / "evaluation"
        if (evaluation / "evaluation.json").is_file():
            results = json.loads((evaluation / "evaluation.json").read_text())
            blocks["scores"] = scores(results)
            blocks["clips"] = clips(evaluation, results["captions"], options.clips, folder)
    if options.ablation:
        text = (options.ablation / "ablation.md").read_text()
        blocks["ablation"] = re.sub(r"^#", "###", text, flags=re.MULTILINE)
    page.write_text(filled(page.read_text(), blocks))
    print(page)


if __name__ == "__main__":
    main()
