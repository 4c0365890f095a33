"""The command that generates audio."""

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
from .options import Device, InferencePrecisionName, Model, grouped


@dataclass(frozen=True)
class SamplingOptions:
    """Options for guidance and sampling."""

    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of classifier-free guidance for all stages; -s semantic.guidance=4 sets it for one."),
    ] = None
    negative: Annotated[str | None, typer.Option(help="Negative prompt, which guidance leads away from.")] = None
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            "--sampling",
            "-s",
            metavar="KEY=VALUE",
            help="Sampling option for all stages, such as temperature=0.8, top_k=50 or steps=100, or for one stage, "
            "such as coarse.top_k=50. Can be repeated.",
        ),
    ] = None

    precision: InferencePrecisionName = "fp32"
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the steps of all stages, on CUDA only. The first clip takes a minute longer, which pays for "
            "long clips and many of them.",
        ),
    ] = False

    def settings(self) -> dict[str, Any]:
        """Return ``key=value`` and ``stage.key=value`` as the mapping that :class:`partita.Request` takes."""
        settings: dict[str, Any] = {}
        for text in self.sampling or ():
            key, equals, value = text.partition("=")
            *stage, name = key.split(".")
            if not equals or len(stage) > 1:
                raise PartitaError(f"--sampling takes key=value, such as temperature=0.8, not {text!r}")
            place = settings.setdefault(stage[0], {}) if stage else settings
            if not isinstance(place, dict):
                raise PartitaError(
                    f"--sampling sets both {stage[0]}, to {place!r:.80}, and {key}, as if {stage[0]} were a stage"
                )
            try:
                place[name] = read_value(value)
            except ValueError as error:
                raise PartitaError(f"--sampling {key}: {error}") from None
        return settings


@dataclass(frozen=True)
class LoadingOptions:
    """Options for loading the system."""

    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="ADAPTER[=WEIGHT]",
            help="Run folder or Hub id of an adapter that was trained for the system, and how much of it is added: "
            "runs/folk=0.7. Can be repeated.",
        ),
    ] = None
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--word",
            metavar="WORD",
            help="Folder or Hub id of a pseudo-word, which prompts have in angle brackets: 'a waltz like <song>'. Can "
            "be repeated.",
        ),
    ] = None
    device: Device = "auto"

    def load(self, model: str) -> partita.System:
        """Load a system with the adapters."""
        weights: dict[str | Path, float] = {}
        for text in self.adapters or ():
            name, equals, number = text.rpartition("=")
            source = name if equals else text
            try:
                if not source.strip():
                    raise ValueError
                weight = float(number) if equals else 1.0
            except ValueError:
                raise PartitaError(
                    f"--adapter takes a run or hub id with a weight, runs/folk=0.7, not {text!r}"
                ) from None
            if Path(source) in map(Path, weights):
                raise PartitaError(f"--adapter names {source} twice: keep one")
            weights[source] = weight
        return partita.load(model, device=self.device, adapters=weights, words=self.words or ())


@dataclass(frozen=True)
class StoryOptions:
    """Inputs other than text, a melody, chords, tempo, key and beats, and later prompts of a story."""

    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FIELD=VALUE",
            help="Input other than text, such as --input tempo=90 or --input audio=hum.wav. Can be repeated. "
            "`partita list field` shows all fields; each system reads some of them.",
        ),
    ] = None

    melody: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Audio file of a hummed, whistled or played melody for the clips, in systems that take one.",
        ),
    ] = None

    style: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Audio file whose style the clips follow, in systems that take one."),
    ] = None
    style_streams: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="Number of codebooks of the style, from 1: more of them follow the recording more closely.",
        ),
    ] = None

    chords: Annotated[
        str | None,
        typer.Option(
            metavar="CHORDS",
            help="Chords of the clips: a progression such as 'C G Am F', spread evenly over the clip or, with --bpm, a "
            "bar each and repeated; or a .lab, .json or .csv file with rows of start, end and chord.",
        ),
    ] = None
    bpm: Annotated[float | None, typer.Option(help="Tempo of the clips in beats per minute.")] = None
    key: Annotated[str | None, typer.Option(help="Key of the clips, such as 'A minor'.")] = None
    beats_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Audio file whose beats the clips are to have.")
    ] = None

    then: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECONDS:PROMPT",
            help="Continue with another prompt from this time on: --then '20: flute'. Can be repeated.",
        ),
    ] = None
    transition: Annotated[
        float | None, typer.Option(help="Seconds of the preceding audio that each --then continues.")
    ] = None

    def rows(self, prompts: Sequence[str] | None) -> list[partita.Row]:
        """Return a row for each prompt, with its later prompts and other inputs."""
        if self.transition is not None and not self.then:
            raise PartitaError("--transition requires --then: it sets how much audio the next prompt continues")
        others = self.other_inputs()
        if not self.then:
            return [partita.Row({"text": prompt, **others}) for prompt in prompts or ()] or [partita.Row(others)]
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
        return [partita.Row({"text": story, **others}) for story in stories]

    @property
    def shortcuts(self) -> dict[str, Any]:
        """The inputs of all clips that have an option of their own, by option."""
        given = {"melody": self.melody, "style": self.style, "style_streams": self.style_streams}
        return {name: str(value) for name, value in given.items() if value is not None}

    def structure(self, duration: float | None) -> partita.Request:
        """Return chords, tempo, key and beats for clips of this many seconds."""
        return partita.Request(duration=duration, chords=self.chords, bpm=self.bpm, key=self.key, beats=self.beats_from)

    def other_inputs(self) -> dict[str, str]:
        """Return the unparsed values of ``--input`` by field."""
        inputs: dict[str, str] = {}
        for text in self.inputs or ():
            name, equals, value = text.partition("=")
            if not equals or not name or name == "text":
                raise PartitaError(f"--input takes a field and a value, such as tempo=90, not {text!r}")
            if name in inputs:
                raise PartitaError(f"--input has two values for {name}: keep one")
            inputs[name] = value
        return inputs


@dataclass(frozen=True)
class ContinuationOptions:
    """The audio that the clips continue."""

    continuation: Annotated[
        Path | None,
        typer.Option(
            "--continue",
            metavar="FILE",
            help="Audio file to continue. Each clip starts with this audio and must be longer.",
        ),
    ] = None
    continue_from: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Start of the excerpt to continue, in seconds.")
    ] = None
    continue_for: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Length of the excerpt to continue, in seconds; by default, to the end of the file."
        ),
    ] = None
    continue_last: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Length of the excerpt at the end of the file to continue, in seconds."),
    ] = None
    splice: Annotated[
        bool,
        typer.Option(
            help="Start with the original samples of the file, with a crossfade to the codec's reconstruction in the "
            "last 0.1 s. With --no-splice, the beginning is the codec's reconstruction."
        ),
    ] = True

    def excerpt(self) -> partita.Excerpt | None:
        """Return the excerpt to continue, or ``None`` without ``--continue``."""
        if self.continuation is None:
            if (self.continue_from, self.continue_for, self.continue_last) != (None, None, None):
                raise PartitaError("--continue-from, --continue-for and --continue-last require --continue FILE")
            return None
        return partita.Excerpt(
            self.continuation, start=self.continue_from or 0.0, seconds=self.continue_for, last=self.continue_last
        )


@dataclass(frozen=True)
class FileOptions:
    """Options for mastering and writing clips."""

    output: Annotated[Path, typer.Option("--output", "-o", help="Audio file; numbered if there are several clips.")] = (
        Path("out.wav")
    )
    loudness: Annotated[
        float | None,
        typer.Option(help="Loudness of every clip in LUFS, such as -14 (streaming services) or -23 (EBU R 128)."),
    ] = None
    peak: Annotated[
        float | None,
        typer.Option(help="Maximum true peak in dBTP; by default, -1 with --loudness and no limit without."),
    ] = None
    fade: Annotated[float, typer.Option(help="Length of the fade-in and of the fade-out, in seconds.")] = 0.0
    bits: Annotated[int | None, typer.Option(help="Bits per sample of lossless formats: 16, 24 or 32.")] = None


@grouped
def generate(
    model: Model,
    loading: LoadingOptions,
    sampling: SamplingOptions,
    story: StoryOptions,
    beginning: ContinuationOptions,
    files: FileOptions,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Text prompts, one clip for each.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompt file, one clip for each line: a text or, in a .jsonl file, an object with text or other "
            "inputs of the system, and optionally seed and duration. The clips are numbered, and a .jsonl manifest "
            "beside them lists the clips.",
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option("--duration", "-d", help="Length of each clip in seconds; by default, the longest window."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first clip; it increases by 1 for each further clip.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Maximum number of clips in a batch.")] = 8,
    play: Annotated[
        bool, typer.Option("--play", help="Play each clip while it is generated, one after the other.")
    ] = False,
) -> None:
    """Generate audio from prompts."""
    output, bits = files.output, files.bits
    partita.check_writable(output, bits)
    master = partita.Mastering(files.loudness, files.peak, files.fade)
    manifest = None if prompt_file is None else output.with_suffix(".jsonl")
    if prompt_file is not None:
        if prompts or story.then or story.inputs:
            raise PartitaError("--prompts reads all prompts from a file: remove the other prompts, --then and --input")
        if manifest is not None and manifest.resolve() == prompt_file.resolve():
            raise PartitaError(f"the manifest would overwrite {manifest}: choose another name with -o")
    if play:
        partita.check_player()
    rows, excerpt, sampling_changes = story.rows(prompts), beginning.excerpt(), sampling.settings()
    system = loading.load(model)
    spec = system.output.spec
    partita.check_writable(output, bits, spec.sample_rate, spec.channels)
    if prompt_file is not None:
        rows = partita.read_prompts(prompt_file, system)
    for option, value in story.shortcuts.items():
        rows = partita.with_input(system, rows, option, value)
    rows = partita.with_structure(system, rows, story.structure(duration))
    for warning in partita.prompt_warnings(system, rows):
        warnings.warn(warning, stacklevel=1)
    request = partita.Request(
        duration=duration,
        seed=seed,
        guidance=sampling.guidance,
        sampling=sampling_changes,
        negative=sampling.negative,
        continuation=excerpt,
        transition=story.transition,
        splice=beginning.splice,
        precision=sampling.precision,
        compile=sampling.compile,
    )
    made: dict[int, dict[str, Any]] = {}
    clips = (
        partita.play_each(system, rows, request)
        if play
        else partita.generate_each(system, rows, request, at_once=at_once)
    )
    for i, clip in clips:
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
        out.print(f"{manifest}: manifest with a line for each clip")
