"""What is measured of codecs: silence, systems with stages, and codecs side by side."""

import csv
import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from ablation_toys import Here, study
from evaluation_toys import CODEC_ROWS, FEW
from partita.core.contracts import Example
from partita.evaluation.ablate import ablate
from partita.evaluation.comparison import Comparison
from partita.evaluation.evaluate import evaluate
from partita.evaluation.evaluation_options import Evaluation
from partita.evaluation.scores.codec_quality import Codec
from partita.recipe.plan import load_recipe
from partita.system.system import System


def measured(toy_recipe, folder, clips):
    pieces = [Example(clip, clip.shape[1], {"id": str(i)}) for i, clip in enumerate(clips)]
    made = Comparison(System(load_recipe(toy_recipe)), torch.stack(clips), pieces, pieces, Evaluation(), folder)
    return Codec().measure(made)


def test_silence_is_measured_where_it_can_be(toy_recipe, tmp_path):
    noise, silence = 0.1 * torch.randn(1, 4000), torch.zeros(1, 4000)
    rows = measured(toy_recipe, tmp_path, [noise, silence, 2 * noise, 3 * noise])
    assert set(rows) == CODEC_ROWS
    assert rows["SI-SDR"]["clips"] == 3
    assert rows["mel distance"]["clips"] == 4
    silent = measured(toy_recipe, tmp_path, [silence, silence])
    assert set(silent) == CODEC_ROWS - {"SI-SDR"}
    for row in [*rows.values(), *silent.values()]:
        assert all(math.isfinite(row.get(key, 0)) for key in ("value", "low", "high", "chance"))
    json.dumps(rows, allow_nan=False)


def test_the_codec_of_a_system_can_be_heard(run):
    rows = evaluate(run, options=FEW)["metrics"]
    assert {rows[name]["subject"] for name in CODEC_ROWS} == {"codec"}
    kept = sorted(path.name for path in (run / "evaluation" / "codec").iterdir())
    assert kept == [f"{i:05d}-{what}.flac" for i in range(3) for what in ("reconstruction", "recording")]
    assert (run / "evaluation" / "evaluation.html").read_text().count("<figcaption>reconstructed</figcaption>") == 3


def test_codecs_are_compared_by_all_that_is_measured(toy_recipe, tmp_path):
    recipe = yaml.safe_load(toy_recipe.read_text())
    del recipe["stages"], recipe["conditioners"]
    toy_recipe.write_text(yaml.safe_dump(recipe))
    root = tmp_path / "out"
    assert ablate(study(toy_recipe, "tokenizers.acoustic.cardinality=256,2"), root, launcher=Here(root)) == {}
    fine, coarse = csv.DictReader((root / "ablation.csv").open())
    assert {name.removesuffix(" value") for name in fine if name.endswith(" value")} >= CODEC_ROWS
    assert float(fine["mel distance value"]) < float(coarse["mel distance value"])
    assert float(fine["bitrate value"]) == 8 * float(coarse["bitrate value"])
    assert "audio s/s reconstructed" in fine
    page = (root / "ablation.html").read_text()
    assert "Reconstructions of the same recordings" in page
    assert page.count("<figcaption>real clip</figcaption>") > 0
    assert page.count("<audio") == 3 * page.count("<figcaption>real clip</figcaption>")


def test_a_page_compares_existing_runs(toy_recipe, tmp_path, monkeypatch, pictures):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    page = importlib.import_module("codec_page")
    recipe = yaml.safe_load(toy_recipe.read_text())
    system = System(load_recipe(toy_recipe))
    system.save(tmp_path / "system")
    del recipe["stages"], recipe["conditioners"]
    for levels in (2, 256):
        recipe["tokenizers"]["acoustic"] |= {"cardinality": levels, "hop": 4}
        toy_recipe.write_text(yaml.safe_dump(recipe))
        System(load_recipe(toy_recipe)).save(tmp_path / f"levels-{levels}")
    runs = [str(tmp_path / f"levels-{levels}") for levels in (2, 256)]
    page.main([*runs, "-o", str(tmp_path / "codecs.md"), "--clips", "3", "--shown", "1", "--seconds", "1"])
    text = (tmp_path / "codecs.md").read_text()
    (row,) = re.findall(r"^\| levels-2 \|  \| 2 \|.*", text, flags=re.MULTILINE)
    assert "100%" in row
    assert re.search(r"codec distance ↓.*\n.*\n\| levels-2 .*\n\| levels-256 .*\*\*", text)
    listened = re.findall(r"\(codecs/(\S+\.ogg)\)", text)
    assert len(listened) == 3
    assert all((tmp_path / "codecs" / name).stat().st_size < 200_000 for name in listened)
    (tmp_path / "codecs.md").write_text(text.replace("# Codecs", "# Ours"))
    page.main([runs[1], "-o", str(tmp_path / "codecs.md"), "--shown", "1"])
    text = (tmp_path / "codecs.md").read_text()
    assert text.startswith("# Ours")
    assert "levels-2 " not in text
    with pytest.raises(SystemExit, match="more than a tokenizer"):
        page.main([str(tmp_path / "system"), "-o", str(tmp_path / "codecs.md")])
    with pytest.raises(SystemExit, match="is no run"):
        page.main([str(tmp_path), "-o", str(tmp_path / "codecs.md")])
    other = json.loads((tmp_path / "levels-2" / "evaluation" / "evaluation.json").read_text())
    other["request"]["clips"] = 5
    (tmp_path / "levels-2" / "evaluation" / "evaluation.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="evaluated differently: clips 5 and 3"):
        page.main([*runs, "-o", str(tmp_path / "codecs.md")])


def test_a_page_has_the_means_of_seeds(toy_recipe, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    page = importlib.import_module("codec_page")
    recipe = yaml.safe_load(toy_recipe.read_text())
    del recipe["stages"], recipe["conditioners"]
    values = []
    for seed, levels in enumerate((4, 256)):
        recipe["tokenizers"]["acoustic"]["cardinality"] = levels
        toy_recipe.write_text(yaml.safe_dump(recipe))
        folder = tmp_path / "coarse" / f"seed-{seed}"
        System(load_recipe(toy_recipe)).save(folder)
        values.append(
            evaluate(folder, options=Evaluation(clips=3, reference_clips=3))["metrics"]["mel distance"]["value"]
        )
    page.main([*map(str, sorted((tmp_path / "coarse").iterdir())), "-o", str(tmp_path / "page.md"), "--shown", "0"])
    text = (tmp_path / "page.md").read_text()
    low, high = sorted(values)
    assert f"{sum(values) / 2:.3f} [{low:.3f}, {high:.3f}]" in text
    assert [row.split(" | ")[1] for row in text.splitlines() if "% | " in row] == ["0", "1"]
