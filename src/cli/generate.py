"""The command that generates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import partita

from ..core.console import out
from ..errors import PartitaError
from ..recipe.recipe_files import read_value
from .options import Device, Model, grouped


@dataclass(frozen=True)
class DrawingOptions:
    """How stages draw."""

    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None
    negative: Annotated[str | None, typer.Option(help="A prompt that guidance leads away from.")] = None
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            "--sampling",
            "-s",
            metavar="KEY=VALUE",
            help="How stages draw, such as temperature=0.8, top_k=50, steps=100, or of one stage, coarse.top_k=50.",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """``key=value`` and ``stage.key=value`` as the mapping that generation takes."""
        settings: dict[str, Any] = {}
        for text in self.sampling or ():
            key, equals, value = text.partition("=")
            *stage, name = key.split(".")
            if not equals or len(stage) > 1:
                raise PartitaError(f"--sampling takes key=value, such as temperature=0.8, not {text!r}")
            place = settings.setdefault(stage[0], {}) if stage else settings
            if not isinstance(place, dict):
                raise PartitaError(f"--sampling sets {stage[0]} to {place!r:.80}, and {key} as if it were a stage")
            try:
                place[name] = read_value(value)
            except ValueError as error:
                raise PartitaError(f"--sampling {key}: {error}") from None
        return settings


@dataclass(frozen=True)
class StoryOptions:
    """What else the clips are told than a prompt, and how the prompt goes on."""

    tell: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="What the clips are told beside the prompt: --tell tempo=90, --tell audio=hum.wav. "
            "`partita list field` shows the fields; a system reads some of them.",
        ),
    ] = None

    then: Annotated[
        list[str] | None,
        typer.Option(metavar="SECONDS:PROMPT", help="Go on with another prompt from there: --then '20: flute'."),
    ] = None
    transition: Annotated[float | None, typer.Option(help="Seconds of what came before that --then goes on from.")] = (
        None
    )

    def rows(self, prompts: Sequence[str] | None) -> list[partita.Row]:
        """The clips that the command line asks for, each prompt with what follows it."""
        if self.transition is not None and not self.then:
            raise PartitaError("--transition says what --then goes on from: there is no --then")
        beside = self.beside()
        if not self.then:
            return [partita.Row({"text": prompt, **beside}) for prompt in prompts or ()] or [partita.Row(beside)]
        later = []
        for text in self.then:
            seconds, colon, prompt = text.partition(":")
            try:
                later.append((float(seconds), prompt.strip()))
            except ValueError:
                colon = ""
            if not colon or not prompt.strip():
                raise PartitaError(f"--then takes seconds and a prompt, such as '20: flute', not {text!r}")
        stories = [partita.Story([(0.0, prompt), *later]) for prompt in prompts or (None,)]
        return [partita.Row({"text": story, **beside}) for story in stories]

    def beside(self) -> dict[str, str]:
        """What the clips are told beside the prompt, by field, as it was written."""
        told: dict[str, str] = {}
        for text in self.tell or ():
            name, equals, value = text.partition("=")
            if not equals or not name or name == "text":
                raise PartitaError(f"--tell takes a field and a value, such as tempo=90, not {text!r}")
            if name in told:
                raise PartitaError(f"--tell has two values for {name}: keep one")
            told[name] = value
        return told


@dataclass(frozen=True)
class ContinuationOptions:
    """What the clips start with."""

    continuation: Annotated[
        Path | None,
        typer.Option(
            "--continue",
            metavar="FILE",
            help="Audio file that the clips start with and go on from. The clips are longer than what they start with.",
        ),
    ] = None
    continue_from: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Start with what follows this time of the file.")
    ] = None
    continue_for: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Start with so much of the file; to its end unless given.")
    ] = None
    continue_last: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Start with the last seconds of the file.")
    ] = None
    splice: Annotated[
        bool,
        typer.Option(
            help="Start with the very samples of the file, which go over into what the codec makes of them within the "
            "last 0.1 s. With --no-splice, the beginning is as the codec has it, too."
        ),
    ] = True

    def excerpt(self) -> partita.Excerpt | None:
        """The part of the file that is asked for."""
        if self.continuation is None:
            if (self.continue_from, self.continue_for, self.continue_last) != (None, None, None):
                raise PartitaError(
                    "--continue-from, --continue-for and --continue-last are of a file: add --continue FILE"
                )
            return None
        return partita.Excerpt(
            self.continuation, start=self.continue_from or 0.0, seconds=self.continue_for, last=self.continue_last
        )


@dataclass(frozen=True)
class FileOptions:
    """How clips are prepared for listening and written."""

    output: Annotated[
        Path, typer.Option("--output", "-o", help="Audio file; numbered where there are several clips.")
    ] = Path("out.wav")
    loudness: Annotated[
        float | None,
        typer.Option(help="Bring every clip to this many LUFS: -14 as streaming services, -23 as EBU R128."),
    ] = None
    peak: Annotated[
        float | None, typer.Option(help="Limit true peaks to this many dBTP; -1 where --loudness is given.")
    ] = None
    fade: Annotated[float, typer.Option(help="Seconds of fading in and out.")] = 0.0
    bits: Annotated[int | None, typer.Option(help="Bits per sample, of formats without loss: 16, 24 or 32.")] = None


@grouped
def generate(
    model: Model,
    drawing: DrawingOptions,
    story: StoryOptions,
    beginning: ContinuationOptions,
    files: FileOptions,
    prompts: Annotated[list[str] | None, typer.Argument(help="One clip for each prompt.", show_default=False)] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="One clip for each line of a file: a text, or, in a .jsonl file, an object with text or other inputs "
            "of the system, and if wanted seed and duration. The clips are numbered, and a .jsonl file of their name "
            "says what was made.",
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", "-d", help="Seconds; the system's window unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first clip; the next ones count up.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Most clips that are generated together.")] = 8,
    device: Device = "auto",
) -> None:
    """Generate audio from prompts."""
    output, bits = files.output, files.bits
    partita.check_writable(output, bits)
    master = partita.Mastering(files.loudness, files.peak, files.fade)
    manifest = None if prompt_file is None else output.with_suffix(".jsonl")
    if prompt_file is not None:
        if prompts or story.then or story.tell:
            raise PartitaError(
                "--prompts reads all prompts from a file: there can be no other, no --then and no --tell"
            )
        if manifest is not None and manifest.resolve() == prompt_file.resolve():
            raise PartitaError(f"{manifest} would be overwritten with what was made: choose another name with -o")
    rows, excerpt, sampling = story.rows(prompts), beginning.excerpt(), drawing.settings()
    system = partita.load(model, device=device)
    spec = system.output.spec
    partita.check_writable(output, bits, spec.sample_rate, spec.channels)
    if prompt_file is not None:
        rows = partita.read_prompts(prompt_file, system)
    for doubt in partita.doubts_about(system, rows):
        warnings.warn(doubt, stacklevel=1)
    request = partita.Request(
        duration=duration,
        seed=seed,
        guidance=drawing.guidance,
        sampling=sampling,
        negative=drawing.negative,
        continuation=excerpt,
        transition=story.transition,
        splice=beginning.splice,
    )
    made: dict[int, dict[str, Any]] = {}
    for i, clip in partita.generate_each(system, rows, request, at_once=at_once):
        path = output if len(rows) == 1 and manifest is None else output.with_stem(f"{output.stem}-{i + 1}")
        done = master(clip.numpy(), spec.sample_rate)
        partita.write_audio(path, done.audio, spec.sample_rate, bits)
        seconds = clip.shape[-1] / spec.sample_rate
        words = rows[i].words
        line = [f"{path}: {seconds:.2f} s", *([f"“{words}”"] if words else [])]
        out.print(", ".join([*line, *([str(done)] if master.measures else [])]))
        own = rows[i].seed
        made[i] = {"file": path.name, **rows[i].inputs, "seed": seed + i if own is None else own, "duration": seconds}
        if manifest is not None:
            partita.write_manifest(manifest, [made[place] for place in sorted(made)])
    if manifest is not None:
        out.print(f"{manifest}: what was made, a line for each clip")
