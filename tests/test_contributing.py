"""The worked examples of CONTRIBUTING.md do what it says."""

from pathlib import Path

import pytest
import torch
import yaml

import partita
from partita.core.part import Part
from partita.recipe.plan import load_recipe
from partita.training.training import train

TEXT = (Path(partita.__file__).parent.parent / "CONTRIBUTING.md").read_text()


def blocks(language):
    return [part.split("```")[0] for part in TEXT.split(f"```{language}\n")[1:]]


def define(block):
    names = {"__name__": "example"}
    exec(compile(block, "example.py", "exec"), names)
    return names


def test_a_conditioner(toy_recipe, tmp_path):
    define(blocks("python")[0])
    overrides = ["conditioners.tempo=tempo", "stages.main.given=[text, tempo]", "data={name: corpus, limit: 12}"]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    assert system.generate({"text": ["flute"], "tempo": [90]}, duration=0.2).shape == (1, 1, 800)
    with pytest.raises(partita.PartitaError, match="beats per minute"):
        system.generate({"text": ["flute"], "tempo": ["fast"]})


def test_a_kind_of_stage_goes_through_everything(tmp_path):
    """Registered, put into a mixed chain by a recipe, trained, saved, loaded, over several windows, told a story."""
    define(blocks("python")[1])
    recipe = yaml.safe_load(next(block for block in blocks("yaml") if "one-pass" in block))
    few = {"steps": 3, "batch_size": 2, "crop": 0.6, "validation_examples": 2}
    recipe["tokenizers"] = {"acoustic": {"fit": few}, "semantic": {"fit": few}}
    recipe["stages"]["semantic"] = {"window": 1.2, "generator": {"fit": few}}
    recipe["stages"]["acoustic"]["generator"]["fit"] = few
    recipe["stages"]["acoustic"]["window"] = 0.6
    recipe |= {"data": {"limit": 12}, "trainer": {"logger": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    system = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert {n: g.fusion for n, g in system.stages["acoustic"].given.items()} == {"text": "cross", "semantic": "add"}
    prompts = ["organ", partita.Story([(0, "organ"), (0.8, "flute")])]
    audio = system.generate(prompts, duration=2, guidance=2.0, sampling={"top_k": 10})
    assert audio.shape == (2, 1, 32000)
    system.save(tmp_path / "export")
    for folder in ("run", "export"):
        again = partita.load(tmp_path / folder).generate(prompts, duration=2, guidance=2.0, sampling={"top_k": 10})
        assert torch.equal(again, audio)
    alone = Part.load(tmp_path / "export" / "stages" / "acoustic")
    assert alone.registered_name == "one-pass"


def test_the_kind_of_stage_learns(tmp_path):
    from partita.core.contracts import Condition, Given, RepresentationSpec

    stage_class = define(blocks("python")[1].replace('"one-pass"', '"one-pass-again"'))["OnePass"]
    given = RepresentationSpec(16000, 1, 25.0, 1, 8).as_condition()
    target = RepresentationSpec(16000, 1, 50.0, 2, 8)
    stage = stage_class(target, {"semantic": Given(given, "add")}, dropout=0.0)
    semantic = torch.randint(8, (4, 1, 8))
    codes = torch.randint(8, (4, 2, 16))
    condition = Condition.of(semantic, torch.ones(4, 8, dtype=torch.bool))
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    for _ in range(300):
        loss = stage.loss(codes, torch.ones(4, 16, dtype=torch.bool), {"semantic": condition})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampling = stage.changed_sampling({"temperature": 0.0, "guidance": 1.0})
    made = stage.generate({"semantic": (condition, condition.absent())}, 16, seeds=range(4), sampling=sampling)
    assert (made == codes).float().mean() >= 0.99
