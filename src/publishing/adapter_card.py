"""The files of published adapters: the adapters, their recipe, and a model card that names their system."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ..core.part_key import PartKey
from ..errors import PartitaError
from ..pages.plots import png, spectrogram_figure
from ..recipe.plan import load_recipe
from ..storage.audio_file import flac
from ..storage.files import kind
from ..storage.saved_format import ADAPTERS, numbered
from ..storage.untrusted import own_file, read_json
from ..system.adapters import BASE, CONFIG, TENSORS, SavedAdapter, base_of, read_adapters
from ..system.assembly import INDEX, index_yaml
from ..system.system import System, load
from .card import SEED, data_overview, data_settings, one_line, trainings
from .private import Owner, publishable


def collect_adapters(
    run: str | Path,
    repo_id: str,
    *,
    base: str | None = None,
    license: str | None = None,
    examples: int = 3,
    preview: bool = False,
) -> dict[str, Path | bytes]:
    """Return all files of trained adapters that are published, by their path in the repository.

    Args:
        run: The run folder.
        repo_id: Hub id ``user/name``, which the model card names.
        base: Hub id of the system that the adapters belong to. ``None`` takes the one that they were trained for.
        license: Identifier of the license on the Hub.
        examples: Number of pairs of clips to generate, with and without the adapters.
        preview: Whether the system may still be on this machine only. Otherwise the adapters must fit the one on the
            Hub.

    Raises:
        PartitaError: The adapters belong to a system that is only on this machine, or to another one than ``base``.
    """
    folder, trained_for = Path(run), base_of(run)
    hub_id = base or trained_for
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or kind(Path(hub_id)):
        raise PartitaError(
            f"{run} holds adapters of {trained_for}, which others do not have: push that system first, and name it "
            "with --base user/name (in Python, base=...)"
        )
    plan = load_recipe(folder / INDEX)
    trained = System.outline(plan)
    source = trained_for if preview and kind(Path(trained_for)) == "folder" else hub_id
    with_adapters = load(source, adapters={folder: 1.0})  # which checks that they belong to it
    owner = Owner.here(folder, plan.values, repo_id)
    values = yaml.safe_load(index_yaml(plan)) | {"finetune": hub_id}
    found: dict[str, Path | bytes] = {INDEX: yaml.safe_dump(numbered(owner.value(values)), sort_keys=False).encode()}
    saved = read_adapters(folder)
    for one in saved:
        place = f"{ADAPTERS}/{one.folder.name}"
        found[f"{place}/{TENSORS}"] = own_file(folder, f"{place}/{TENSORS}").resolve()
        for name, key in ((CONFIG, "base_model_name_or_path"), (BASE, "base")):
            content = read_json(one.folder / name) | {key: hub_id}
            found[f"{place}/{name}"] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    pairs = list(_pairs(trained, with_adapters, load(source), examples))
    for number, (_, clips) in enumerate(pairs, 1):
        for which, clip in clips.items():
            rate = with_adapters.sample_rate
            found[f"samples/{number}-{which}.flac"] = flac(clip.numpy(), rate)
            found[f"samples/{number}-{which}.png"] = png(spectrogram_figure(clip, rate))
    captions = [caption for caption, _ in pairs]
    found["README.md"] = _card(trained, saved, repo_id, hub_id, license, captions).encode()
    return publishable(found, owner)


def _pairs(trained: System, after: System, before: System, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the caption of each test piece with the clips made from it with and without adapters, if there is data."""
    if count < 1:
        return
    try:
        trained.source.setup()
        pieces = trained.examples("test", count, SEED)
        known = [pieces[i].fields for i in range(count)]
        inputs, seeds = after.prompts_of(known), list(range(count))
        clips = [system.generate(inputs, seed=seeds).cpu() for system in (after, before)]
    except (PartitaError, OSError):
        return
    for number, fields in enumerate(known):
        yield str(fields.get("text", "")), {"with": clips[0][number], "without": clips[1][number]}


def _card(
    trained: System, saved: list[SavedAdapter], repo_id: str, base: str, license: str | None, captions: list[str]
) -> str:
    """Return the model card of adapters."""
    kinds = [one.adapter.registered_name for one in saved]
    metadata: dict[str, Any] = {} if license is None else {"license": license}
    metadata |= {
        "base_model": base,
        "base_model_relation": "adapter",
        "library_name": "partita",
        "pipeline_tag": "text-to-audio",
        "tags": list(dict.fromkeys(["partita", "music", "music-generation", "audio", "peft", *kinds])),
    }
    rows = {row["key"]: row for row in trainings(trained)}
    prompt = json.dumps(one_line(next(filter(None, captions), "a slow piece for flute")), ensure_ascii=False)
    values = {
        "metadata": yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "base": base,
        "texts": "text" in trained.inputs,
        "prompt": prompt,
        "adapters": [
            {
                "stage": one.stage,
                "kind": one.adapter.registered_name,
                "rank": one.adapter.arguments["rank"],
                "layers": len(one.adapter.arguments["layers"]),
                "parameters": one.num_parameters,
                "share": f"{one.num_parameters / trained.stages[one.stage].num_own_parameters:.1%}",
                "training": rows[PartKey.of("stages", one.stage)],
            }
            for one in saved
        ],
        "data": " ".join(
            [
                f"The data is `{trained.source.registered_name}`{data_settings(trained)}.",
                *(f"{one_line(line)}." for line in data_overview(trained)),
            ]
        ),
        "origins": [one_line(f"{origin.what}: {origin.license}") for origin in trained.source.origins],
        "captions": [one_line(caption) or "no prompt" for caption in captions],
    }
    text = (files(__package__) / "adapter_card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(text).render(values)
