"""The command that generates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import bars, device_name, out
from .errors import PartitaError


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
        float | None,
        typer.Option(help="Bring every clip to this many LUFS: -14 as streaming services, -23 as EBU R128."),
    ] = None,
    peak: Annotated[
        float | None, typer.Option(help="Limit true peaks to this many dBTP; -1 where --loudness is given.")
    ] = None,
    fade: Annotated[float, typer.Option(help="Seconds of fading in and out.")] = 0.0,
    bits: Annotated[int | None, typer.Option(help="Per sample, of formats without loss: 16, 24 or 32.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
) -> None:
    """Generate audio from prompts."""
    from .data.audio_file import check_writable, write_audio
    from .finish import Finish
    from .system import load

    check_writable(output, bits)
    finish = Finish(loudness, peak, fade)
    told = _story(prompts, then or [])
    if transition is not None and not then:
        raise PartitaError("--transition says what --then goes on from: there is no --then")
    drawn = _settings(sampling or [])
    system = load(model, device=device_name(device))
    facts = system.output.representation
    check_writable(output, bits, facts.sample_rate, facts.channels)
    with bars() as bar:
        audio = system.generate(
            told,
            duration=duration,
            seed=seed,
            guidance=guidance,
            sampling=drawn,
            negative=None if negative is None else [negative] * max(1, len(prompts or [])),
            continuation=continuation,
            transition=transition,
            progress=bar,
        )
    for i, clip in enumerate(audio.cpu()):
        path = output if len(audio) == 1 else output.with_stem(f"{output.stem}-{i + 1}")
        done = finish(clip.numpy(), facts.sample_rate)
        write_audio(path, done.audio, facts.sample_rate, bits)
        words = " … ".join([*([prompts[i]] if prompts else []), *(then or [])])
        said = [f"{path}: {clip.shape[-1] / facts.sample_rate:.2f} s", *([f"“{words}”"] if words else [])]
        out.print(", ".join([*said, *([str(done)] if finish.measures else [])]))


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
        try:
            (settings.setdefault(stage[0], {}) if stage else settings)[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise PartitaError(
                f"--sampling {key}: {value[:80]!r} is no value: {' '.join(str(error).split())}"
            ) from None
    return settings
