"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .compose import find_recipe, preset_values, presets, recipes
from .errors import PartitaError, Stopped
from .registry import FAMILIES, UnknownName, did_you_mean, lookup, names

app = typer.Typer(
    help="Interchangeable, trainable parts for music generation, composed by recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# Tables that go to a file or a pipe are not squeezed into 80 columns.
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True)

Recipe = Annotated[
    str, typer.Argument(help="Name of a packaged recipe, or the path of a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]…", help="Changes, such as tokenizers.acoustic=soundstream-tiny seed=1.", show_default=False
    ),
]


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[FAMILY[/NAME]]",
            help="A family, a part or preset, a recipe, or fit (how parts are trained).",
        ),
    ] = None,
) -> None:
    """What there is: recipes, parts and presets; or the arguments of one part."""
    if what == "fit":
        _fit_options()
        return
    if what and (what.startswith("recipe/") or what in recipes()):
        out.print(find_recipe(what.removeprefix("recipe/")).read_text(encoding="utf-8"), highlight=False, markup=False)
        return
    if what and "/" in what:
        _describe(*what.split("/", 1))
        return
    if what and what not in (*FAMILIES, "recipe"):
        everything = [f"{family}/{name}" for family in FAMILIES for name in (*presets(family), *names(family))]
        named = [name for name in everything if name.split("/")[1] == what]
        hint = did_you_mean(named[0], named) if named else did_you_mean(what, [*FAMILIES, "recipe", "fit"])
        raise PartitaError(f"no family {what!r}{hint}")
    if what in (None, "recipe"):
        _table("recipes", recipes())
    for family in FAMILIES:
        if what in (None, family):
            _table(f"{family}: parts", {f"{family}/{name}": line for name, line in names(family).items()})
            _table(f"{family}: presets", {f"{family}/{name}": line for name, line in presets(family).items()})


@app.command()
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Compose and validate a recipe, and print the system: parts, rates, shapes, parameters."""
    from .recipe import load_recipe
    from .system import System

    system = System.outline(load_recipe(recipe, overrides or []))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("part", "kind", "parameters", "what it yields", "training"):
        right = column == "parameters"
        table.add_column(column, justify="right" if right else "left", no_wrap=column == "part", overflow="fold")
    for row in system.summary():
        table.add_row(row.folder, row.name, f"{row.parameters:,}", row.facts, row.training)
    out.print(table)
    out.print(f"data: {system.source.registered_name}, supplies {', '.join(sorted(system.source.fields))}")


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; runs/RECIPE unless given.")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html at the end.")] = True,
) -> None:
    """Train every untrained part of a system, in order. Run the same command again to resume."""
    from lightning.pytorch.utilities import rank_zero_only

    from .recipe import load_recipe
    from .system import System
    from .training import train as train_system

    plan = load_recipe(recipe, overrides or [])
    System.outline(plan)
    run = output or Path("runs") / Path(recipe).stem
    system = train_system(plan, run, say=rank_zero_only(out.print))
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    out.print(f"trained: {run}")
    if report:
        from .report import write_report

        out.print(f"report: {write_report(system, run, title=Path(recipe).stem)}")


@app.command()
def generate(
    model: Annotated[
        str, typer.Argument(help="A run folder, an export folder, or a hub id (user/name).", show_default=False)
    ],
    prompts: Annotated[list[str] | None, typer.Argument(help="One clip for each prompt.", show_default=False)] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Audio file; numbered where there are several clips.")
    ] = Path("out.wav"),
    duration: Annotated[
        float | None, typer.Option("--duration", "-d", help="Seconds; the system's window unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first clip; the next ones count up.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    negative: Annotated[str | None, typer.Option(help="A prompt that guidance leads away from.")] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            "--sampling",
            "-s",
            metavar="KEY=VALUE",
            help="How stages draw, such as temperature=0.8, top_k=50, steps=100, or of one stage, coarse.top_k=50.",
        ),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(metavar="SECONDS:PROMPT", help="Go on with another prompt from there: --then '20: flute'."),
    ] = None,
    transition: Annotated[
        float | None, typer.Option(help="Seconds of what came before that --then goes on from.")
    ] = None,
    continuation: Annotated[
        Path | None, typer.Option("--continue", help="Audio file that the clips start with, shorter than they are.")
    ] = None,
    loudness: Annotated[
        float | None, typer.Option(help="Bring every clip to this many LUFS: -14 as streaming services, -23 as EBU R128.")
    ] = None,
    peak: Annotated[
        float | None, typer.Option(help="Limit true peaks to this many dBTP; -1 where --loudness is given.")
    ] = None,
    fade: Annotated[float, typer.Option(help="Seconds of fading in and out.")] = 0.0,
    bits: Annotated[int | None, typer.Option(help="Per sample, of formats without loss: 16, 24 or 32.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
) -> None:
    """Generate audio from prompts."""
    from rich.progress import Progress

    from .data.audio_file import check_writable, write_audio
    from .finish import Finish
    from .system import load

    check_writable(output, bits)
    finish = Finish(loudness, peak, fade)
    told = _story(prompts, then or [])
    if transition is not None and not then:
        raise PartitaError("--transition says what --then goes on from: there is no --then")
    drawn = _settings(sampling or [])
    system = load(model, device=_device(device))
    facts = system.output.representation
    check_writable(output, bits, facts.sample_rate, facts.channels)
    with Progress(console=err, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        audio = system.generate(
            told,
            duration=duration,
            seed=seed,
            guidance=guidance,
            sampling=drawn,
            negative=None if negative is None else [negative] * max(1, len(prompts or [])),
            continuation=continuation,
            transition=transition,
            progress=progress,
        )
    for i, clip in enumerate(audio.cpu()):
        path = output if len(audio) == 1 else output.with_stem(f"{output.stem}-{i + 1}")
        done = finish(clip.numpy(), facts.sample_rate)
        write_audio(path, done.audio, facts.sample_rate, bits)
        words = " … ".join([*([prompts[i]] if prompts else []), *(then or [])])
        said = [f"{path}: {clip.shape[-1] / facts.sample_rate:.2f} s", *([f"“{words}”"] if words else [])]
        out.print(", ".join([*said, *([str(done)] if finish.measures else [])]))


def main() -> None:
    """Run the command line: status 2 and one message for the user's mistakes, status 1 and a traceback for ours."""
    # Read when torch is loaded: threads that wait for each other give way soon. Beside another busy process, training
    # on two cores then goes on at half its speed instead of a tenth.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        app(standalone_mode=True)
    except (PartitaError, UnknownName) as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    except (KeyboardInterrupt, Stopped) as stop:
        err.print("stopped; run the same command again to go on")
        sys.exit(128 + getattr(stop, "signal", 2))
    except Exception:
        traceback.print_exc()
        err.print(
            "This is a fault in Partita, not in what you did. Please report it with the lines above.", style="red"
        )
        sys.exit(1)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise PartitaError(f"no device {name!r} here: {str(error).splitlines()[0]}") from None
    return name


def _story(prompts: Sequence[str | None] | None, then: list[str]) -> Sequence[Any] | None:
    """The prompts, each with what follows it."""
    if not then:
        return prompts or None
    from .generation import Story

    later = []
    for text in then:
        seconds, colon, prompt = text.partition(":")
        try:
            later.append((float(seconds), prompt.strip()))
        except ValueError:
            colon = ""
        if not colon or not prompt.strip():
            raise PartitaError(f"--then takes seconds and a prompt, such as '20: flute', not {text!r}")
    return [Story([(0.0, prompt), *later]) for prompt in prompts or (None,)]


def _settings(values: list[str]) -> dict[str, Any]:
    """``key=value`` and ``stage.key=value`` as the mapping that generation takes."""
    import yaml

    settings: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        *stage, name = key.split(".")
        if not equals or len(stage) > 1:
            raise PartitaError(f"--sampling takes key=value, such as temperature=0.8, not {text!r}")
        (settings.setdefault(stage[0], {}) if stage else settings)[name] = yaml.safe_load(value)
    return settings


def _table(title: str, rows: dict[str, str]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, line in rows.items():
        table.add_row(f"  {name}", line)
    out.print(table)


def _describe(family: str, name: str) -> None:
    """A part's arguments with types, defaults and docs; for a preset, its values too."""
    from .schema import FACTS

    if family not in FAMILIES:
        raise PartitaError(f"no family {family!r}{did_you_mean(family, FAMILIES)}")
    values = preset_values(family, name)
    preset = name in presets(family)
    if preset:
        out.print(f"[bold]{family}/{name}[/]: {presets(family)[name]}")
    cls = lookup(family, values["name"])
    out.print(f"[bold]{family}/{cls.registered_name}[/]: {(cls.__doc__ or '').strip().split(chr(10))[0]}")
    skip = FACTS if family == "generator" else ()
    out.print(_arguments(cls, values if preset else None, skip))
    if family == "generator":
        out.print(f"What it is given enters by {', '.join(cls.entries)}.")
    if family != "data":
        out.print("[dim]How it is trained, the `fit:` block: partita list fit[/]")


def _fit_options() -> None:
    from .fit import Fit

    out.print("[bold]fit[/]: how a part is trained; every preset carries such a block")
    out.print(_arguments(Fit, None, ()))


def _arguments(cls: type, values: dict[str, Any] | None, skip: Sequence[str]) -> Table:
    """A row for each argument, groups of them with dotted names; ``values`` is what a preset sets."""
    from .schema import arguments, nested, plain, type_name

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("argument", "type", "default", *(["here"] if values is not None else []), ""):
        table.add_column(column, no_wrap=column == "argument", overflow="fold")

    def add(cls: type, values: Any, before: str) -> None:
        for argument in arguments(cls).values():
            if argument.name in skip:
                continue
            set_here = values.get(argument.name) if isinstance(values, dict) else None
            group = nested(argument.type)
            if group is not None:
                add(group, set_here or {}, f"{before}{argument.name}.")
                continue
            default = "required" if argument.required else str(plain(argument.default))
            here = ["" if set_here is None else str(set_here)] if isinstance(values, dict) else []
            table.add_row(
                before + argument.name, type_name(argument.type), default, *here, argument.doc.replace("``", "")
            )

    add(cls, values, "")
    return table


if __name__ == "__main__":
    main()
