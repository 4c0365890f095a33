"""Adapters of stages: trained alone, saved alone, and added to the system that they belong to."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import partita
from command_line import run as run_cli
from partita.core.part import Part
from partita.core.part_key import PartKey
from partita.errors import PartitaError
from partita.evaluation.ablation_runs import identity_of, make_runs, recipe_of
from partita.evaluation.tasks import Task, perform_task
from partita.generators.adapters.base import Weighted, adapter_state, detach, merge
from partita.generators.adapters.lora import DoRA, LoRA
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.callbacks import Reseed
from partita.training.training import train
from saved_systems import same, weights
from toys import told

SMALL = {"width": 16, "depth": 2, "num_heads": 2}
FIT = {"steps": 6, "batch_size": 2, "lr": 0.05, "checkpoint_every": 2, "validation_examples": 2, "ema": 0.5}
GENERATORS = {
    "autoregressive": {"name": "autoregressive", "backbone": {"name": "transformer", **SMALL}},
    "diffusion": {"name": "diffusion", "denoiser": {"name": "dit", **SMALL}, "sampling": {"steps": 3}},
}
CODECS = {"autoregressive": {"name": "toy-codec"}, "diffusion": {"name": "toy-encoder"}}
PROMPTS = ["tone 1", "tone 3"]


def recipe(kind):
    return {
        "tokenizers": {"acoustic": CODECS[kind]},
        "conditioners": {"text": {"name": "toy-letters"}},
        "stages": {
            "main": {"generator": GENERATORS[kind] | {"fit": FIT}, "target": "acoustic", "given": {"text": "cross"}}
            | {"window": 1.0}
        },
        "data": {"name": "toy-sines"},
        "trainer": {"logger": "csv"},
    }


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A saved system of each kind, with random weights, some of which would otherwise be zero."""
    folders = {}
    for number, kind in enumerate(GENERATORS):
        folders[kind] = tmp_path_factory.mktemp(kind) / "base"
        path = folders[kind].parent / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(kind)))
        system = System(load_recipe(path))
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in system.stages["main"].parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        system.save(folders[kind])
    return folders


@pytest.fixture
def base(bases):
    return bases["autoregressive"]


def adapted(base, adapter="lora", *changes):
    return load_recipe(base / "recipe.yaml", [f"finetune={base}", f"stages.main.adapter={adapter}", *changes])


@pytest.fixture(scope="module")
def folk(bases, tmp_path_factory):
    """A run that trained a LoRA adapter of the autoregressive system."""
    run = tmp_path_factory.mktemp("runs") / "folk"
    train(adapted(bases["autoregressive"]), run)
    return run


def clip(system, **options):
    return system.generate(PROMPTS, duration=0.5, seed=7, progress=False, **options)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_run_holds_the_adapter_alone_and_sounds_the_same_wherever_it_is_loaded(bases, tmp_path, kind, adapter):
    base, run = bases[kind], tmp_path / "run"
    before = weights(base)
    trained = train(adapted(base, adapter), run)
    held = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.suffix in (".safetensors", ".ckpt")}
    assert held == {"adapters/main/adapter_model.safetensors"}
    assert same(weights(base), before)
    expected = clip(trained)
    assert not torch.equal(expected, clip(partita.load(base)))
    loaded = partita.load(run)
    loaded.save(tmp_path / "merged")
    trained.save(tmp_path / "also")
    for system in (loaded, partita.load(base, adapters={run: 1}), *map(partita.load, (tmp_path / "merged",))):
        assert torch.equal(clip(system), expected)
    assert torch.equal(clip(partita.load(tmp_path / "also")), expected)
    assert torch.equal(clip(partita.load(base, adapters={str(run): 0})), clip(partita.load(base)))


def test_a_system_with_the_adapter_of_a_run_has_its_data(base, tmp_path):
    """So that evaluations, exports and model cards name the music that the adapter was trained on."""
    run = tmp_path / "run"
    train(adapted(base, "lora", "data={name: toy-sines, pieces: 7}"), run)
    plan = partita.load(run).plan
    partita.load(run).save(tmp_path / "merged")
    for made in (plan, load_recipe(tmp_path / "merged/recipe.yaml")):
        assert made.values["data"] == {"name": "toy-sines", "pieces": 7}
    assert partita.load(run).source.size("test") == 7
    assert partita.load(base, adapters={run: 1}).source.size("test") == 8


def test_an_adapter_is_added_once_and_with_a_weight(base, folk):
    with pytest.raises(PartitaError, match="already has all of the adapter"):
        partita.load(folk, adapters={str(folk): 0.5})
    for wrong in (str(folk), [folk]):
        with pytest.raises(PartitaError, match="must have a weight for each"):
            partita.load(base, adapters=wrong)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_the_change_is_the_published_one(base, tmp_path, adapter):
    """W + α/r·BA (LoRA, §4.1), and m·(W + α/r·BA) / ‖W + α/r·BA‖ of each output (DoRA, §4.1)."""
    run, name = tmp_path / "run", "backbone.layers.blocks.1.feed_forward.expand"
    slot = f"{{name: {adapter}, rank: 3, alpha: 6, layers: ['*.1.feed_forward.*', output_heads]}}"
    train(adapted(base, slot), run)
    state = load_file(run / "adapters/main/adapter_model.safetensors")
    whole = {key.rpartition(".lora_")[0].removeprefix("base_model.model.") for key in state}
    assert whole == {name, name.replace("expand", "contract"), "output_heads"}
    stages = [partita.load(source).stages["main"] for source in (base, run)]
    old, new = (dict(stage.named_parameters())[f"{name}.weight"] for stage in stages)
    assert state[f"base_model.model.{name}.lora_A.weight"].shape == (3, 16)
    change = 2 * state[f"base_model.model.{name}.lora_B.weight"] @ state[f"base_model.model.{name}.lora_A.weight"]
    wanted = old + change
    if adapter == "dora":
        magnitude = state[f"base_model.model.{name}.lora_magnitude_vector"]
        wanted = magnitude[:, None] * wanted / wanted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(new, wanted, atol=1e-6, rtol=0)
    assert (new - old).abs().max() > 0.01
    others = [key for key in stages[0].state_dict() if not any(part in key for part in whole)]
    assert all(torch.equal(stages[0].state_dict()[key], stages[1].state_dict()[key]) for key in others)


EVERYWHERE = [DoRA(rank=4), LoRA(rank=4), DoRA(rank=2, layers=("*",)), LoRA(rank=2, layers=("*",))]


@pytest.mark.parametrize("adapter", EVERYWHERE)
def test_merged_weights_compute_what_the_attached_adapter_does(base, tmp_path, adapter):
    stage = partita.load(base).stages["main"].eval()
    codes = torch.randint(16, (2, 1, 12), generator=torch.Generator().manual_seed(0))
    letters = partita.load(base).conditioners["text"]
    condition = {"text": letters(letters.prepare(told(PROMPTS)))}
    adapter.attach(stage)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in stage.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn_like(parameter)
        attached = stage.logits(codes, condition)[0]
        state = adapter_state(stage)
        detach(stage)
        alone = stage.logits(codes, condition)[0]
        merge(stage, [Weighted(adapter, state, 1.0)])
        merged = stage.logits(codes, condition)[0]
    torch.testing.assert_close(merged, attached, atol=1e-4, rtol=0)
    assert (attached - alone).abs().max() > 0.1


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("adapter", [LoRA, DoRA])
def test_it_starts_at_no_change_and_learns_by_the_gradient_of_the_published_one(bases, kind, adapter):
    """In every linear layer, by hand: W + α/r·BA, which DoRA multiplies by m / ‖W + α/r·BA‖, a constant norm (§4.3)."""
    system = partita.load(bases[kind])
    stage, letters = system.stages["main"].eval().requires_grad_(False), system.conditioners["text"]
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(16, (2, 1, 12), generator=draw) if stage.discrete else torch.randn(2, 3, 12, generator=draw)
    condition = {"text": letters(letters.prepare(told(PROMPTS)))}

    def loss():
        torch.manual_seed(0)
        return stage.loss(target, torch.ones(2, 12, dtype=torch.bool), condition)["loss"]

    before, weights = loss(), dict(stage.named_parameters())
    adapter(rank=3, alpha=2.5, layers=("*",)).attach(stage)
    trained = {name: parameter for name, parameter in stage.named_parameters() if parameter.requires_grad}
    torch.testing.assert_close(loss(), before, atol=1e-6, rtol=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1 * torch.randn_like(parameter)
    got = torch.autograd.grad(loss(), list(trained.values()))
    detach(stage)
    by_hand = {}
    for name in (name.partition(".lora_A")[0] for name in trained if "lora_A" in name):
        low, high = (trained[f"{name}.lora_{one}.trained.weight"] for one in "AB")
        changed = weights[f"{name}.weight"] + 2.5 / 3 * high @ low
        if adapter is DoRA:
            scale = trained[f"{name}.lora_magnitude_vector.trained.weight"] / changed.norm(dim=1).detach()
            changed = scale[:, None] * changed
        by_hand[f"{name}.weight"] = changed
    torch.manual_seed(0)
    inputs = (target, torch.ones(2, 12, dtype=torch.bool), condition)
    stage.forward = stage.loss
    wanted = torch.autograd.grad(torch.func.functional_call(stage, by_hand, inputs)["loss"], list(trained.values()))
    assert len(by_hand) > 15
    for name, ours, theirs in zip(trained, got, wanted, strict=True):
        assert ours.any(), name
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("layers", ["[output_heads]", "['*']"])
def test_every_layer_that_it_names_learns(base, tmp_path, layers):
    train(adapted(base, f"{{name: lora, layers: {layers}, dropout: 0.1}}"), tmp_path / "run")
    folder = tmp_path / "run/adapters/main"
    state = load_file(folder / "adapter_model.safetensors")
    assert all(value.any() for value in state.values())
    named = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in state}
    assert set(json.loads((folder / "adapter_config.json").read_text())["target_modules"]) == named


def test_rows_of_zeros_have_no_direction(bases, tmp_path):
    system = partita.load(bases["diffusion"])
    with torch.no_grad():
        system.stages["main"].denoiser.layers.blocks[1].cross_attention.output.weight[3] = 0
    system.save(tmp_path / "base")
    with pytest.raises(
        PartitaError, match=r"1 layers have rows of zeros, .*blocks\.1\.cross_attention\.output\): take"
    ):
        train(adapted(tmp_path / "base", "dora"), tmp_path / "dora")
    train(adapted(tmp_path / "base", "lora"), tmp_path / "lora")


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_peft_reads_its_files(bases, tmp_path, kind, adapter):
    from peft import PeftModel

    train(adapted(bases[kind], f"{{name: {adapter}, rank: 3, alpha: 2.5, layers: ['*']}}"), tmp_path / "run")
    wanted = partita.load(tmp_path / "run").stages["main"].state_dict()
    stage = partita.load(bases[kind]).stages["main"]
    model = PeftModel.from_pretrained(stage, str(tmp_path / "run/adapters/main"))
    found = model.merge_and_unload().state_dict()
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_killed_training_resumes_bit_for_bit_without_the_weights_around_it(bases, tmp_path, monkeypatch, kind):
    plan = adapted(bases[kind], "{name: lora, dropout: 0.2}")
    train(plan, tmp_path / "whole")
    start = Reseed.on_train_batch_start

    def dying(self, trainer, module, batch, batch_idx):
        if batch_idx == 4:
            raise Killed
        start(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(Reseed, "on_train_batch_start", dying)
    with pytest.raises(Killed):
        train(plan, tmp_path / "broken")
    checkpoint = torch.load(tmp_path / "broken/checkpoints/stages-main.ckpt", weights_only=True)
    held = [name for name, value in checkpoint["state_dict"].items() if value.is_floating_point() and value.dim() == 2]
    assert held
    assert all("lora_" in name for name in held)
    monkeypatch.undo()
    train(plan, tmp_path / "broken")
    assert same(weights(tmp_path / "broken"), weights(tmp_path / "whole"))
    again = train(plan, tmp_path / "broken")  # which has nothing left to train
    assert torch.equal(clip(again), clip(partita.load(tmp_path / "whole")))


def test_several_are_added_with_weights_in_any_order(base, folk, tmp_path):
    train(adapted(base, "dora", "seed=3"), tmp_path / "jazz")
    jazz = tmp_path / "jazz"
    name = "backbone.layers.blocks.0.self_attention.output"

    def weight(adapters):
        return partita.load(base, adapters=adapters).stages["main"].get_submodule(name).weight

    plain, first, second = weight({}), weight({folk: 1}), weight({jazz: 1})
    both = weight({folk: 0.7, jazz: -0.3})
    torch.testing.assert_close(both, plain + 0.7 * (first - plain) - 0.3 * (second - plain), atol=1e-6, rtol=0)
    assert torch.allclose(both, weight({jazz: -0.3, folk: 0.7}), atol=1e-7)
    assert torch.equal(weight({folk: 0, jazz: 1}), second)
    assert not torch.equal(clip(partita.load(base, adapters={folk: 1})), clip(partita.load(base, adapters={jazz: 1})))


@pytest.mark.parametrize("precision", ["bf16", "int8", "auto"])
def test_every_precision_of_generation_has_the_change(base, folk, precision):
    with_it, without = partita.load(folk), partita.load(base)
    assert not torch.equal(clip(with_it, precision=precision), clip(without, precision=precision))
    clip(without)
    folded = partita.load(folk)
    assert torch.equal(clip(folded, precision=precision), clip(with_it, precision=precision))


def test_merged_systems_need_no_peft(folk, tmp_path, monkeypatch):
    system = partita.load(folk)
    system.save(tmp_path / "merged")
    expected = clip(system)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert torch.equal(clip(partita.load(tmp_path / "merged")), expected)
    assert "adapter" not in (tmp_path / "merged/recipe.yaml").read_text()
    with pytest.raises(PartitaError, match=r"adapters need peft: pip install 'partita\[adapters\]'"):
        partita.load(folk)


def test_another_base_is_refused(bases, base, folk, tmp_path):
    with pytest.raises(PartitaError, match=r"trained for the stage main of .*base, and this system has other weights"):
        partita.load(bases["diffusion"], adapters={folk: 1})
    other = partita.load(base)
    with torch.no_grad():
        other.stages["main"].output_heads.weight[0, 0] += 1
    other.save(tmp_path / "other")
    with pytest.raises(PartitaError, match="has other weights there: load"):
        partita.load(tmp_path / "other", adapters={folk: 1})


def test_a_system_that_was_moved_is_named(base, folk, tmp_path):
    shutil.copytree(folk, tmp_path / "folk")
    path = tmp_path / "folk/adapters/main/base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": str(tmp_path / "gone")}))
    with pytest.raises(PartitaError, match=r"holds adapters of .*gone, which is not there: put that system back, or"):
        partita.load(tmp_path / "folk")
    assert torch.equal(clip(partita.load(base, adapters={tmp_path / "folk": 1})), clip(partita.load(folk)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["stages.main.adapter=lora"], "an adapter belongs to a trained system: name it with finetune=RUN"),
        (["finetune=BASE", "stages.main.adapter=lore"], "no adapter is called 'lore': did you mean 'lora'"),
        (["finetune=BASE", "stages.main.adapter={name: lora, layers: ['*.feed']}"], "no linear layer is called"),
        (["finetune=BASE", "stages.main.adapter={name: lora, rank: 0}"], "rank must be at least 1"),
        (["finetune=BASE", "stages.main.adapter={name: lora, layers: []}"], "layers is empty"),
        (["finetune=BASE", "stages.main.adapter={name: lora, rank: 17}"], "rank 17 is more than a change of these"),
        (
            ["finetune=BASE", "stages.main.adapter=lora", "stages.main.generator.fit.trainable=['*']"],
            "fit.trainable: only the adapter is trained",
        ),
        (["finetune=BASE", "stages.main.adapter=lora", "conditioners.text=lookup"], "conditioners.text: this is not"),
        (["finetune=FOLK", "stages.main.generator.fit.lr=0.1"], "folk holds adapters of .*save one with them merged"),
    ],
)
def test_recipes_of_adapters_say_what_is_wrong(base, folk, changes, words):
    changes = [change.replace("BASE", str(base)).replace("FOLK", str(folk)) for change in changes]
    with pytest.raises(PartitaError, match=words):
        System.checked(base / "recipe.yaml", changes)


def break_config(**changes):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def break_tensors(change):
    def changed(folder):
        path = folder / "adapter_model.safetensors"
        save_file(dict(change(load_file(path))), path)

    return changed


def rename(state):
    return {name.replace("blocks.0", "blocks.9"): value for name, value in state.items()}


def pickle_instead(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def lead_out(folder):
    (folder / "base.json").rename(folder.parents[2] / "base.json")
    (folder / "base.json").symlink_to(folder.parents[2] / "base.json")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pickle_instead, "pickled adapter, which can execute code: refused"),
        (truncate, "damaged"),
        (lead_out, "leads out of its folder"),
        (break_config(peft_type="OFT"), "an adapter of the kind 'OFT'"),
        (break_config(r=10**9), "does not fit the stage main"),
        (break_config(r="many"), "rank: expected int"),
        (break_config(use_dora=True), "does not fit the stage main"),
        (break_config(modules_to_save=["output_heads"]), "sets modules_to_save, which is not read"),
        (break_config(auto_mapping={"parent_library": "os"}), "sets auto_mapping"),
        (break_config(use_rslora=True), "sets use_rslora"),
        (break_config(init_lora_weights="pissa"), "sets init_lora_weights"),
        (break_config(r=10**4000), r"is \[8, 16\] instead of \[1000.{0,100}$"),
        (break_config(lora_alpha=10**400), "alpha: .{0,400}$"),
        (break_config(use_dora="yes"), "does not fit the stage main"),
        (break_config(**{"two\nlines": 1}), "sets two lines, which is not read here: train the adapter without it"),
        (break_config(lora_alpha=1e308), "the stage main has weights that are not finite numbers with the adapters"),
        (break_tensors(lambda state: {n: v.double() * 1e300 for n, v in state.items()}), "no finite floating"),
        (break_tensors(lambda state: {n: (v * torch.nan).to(torch.float8_e5m2) for n, v in state.items()}), "finite"),
        (break_tensors(lambda state: state | {"other": torch.zeros(1)}), "changes 'other'"),
        (lambda folder: shutil.copytree(folder, folder.parent / "again"), "names the stage 'main', and the folder 'a"),
        (break_tensors(rename), "changes 'backbone.layers.blocks.9.*no linear layer of the stage main"),
        (break_tensors(lambda state: list(state.items())[1:]), "1 tensors differ"),
        (break_tensors(lambda state: {n: v * torch.nan for n, v in state.items()}), "no finite floating-point numbers"),
        (break_tensors(lambda state: {n: v.int() for n, v in state.items()}), "no finite floating-point numbers"),
        (break_tensors(lambda state: {}), "holds no tensors: train or download it again"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(bytes([1, *bytes(7)]) + b"{"),
            "is damaged: ",
        ),
        (lambda folder: (folder / "base.json").unlink(), "lacks base.json: copy or download the adapter again"),
        (lambda folder: shutil.rmtree(folder), "holds no finished adapter"),
        (lambda folder: (folder / "base.json").write_text("{}"), "saved by an older version"),
    ],
)
def test_hostile_and_damaged_adapters_are_one_message(folk, base, tmp_path, damage, words):
    run = tmp_path / "user" / "folk"
    shutil.copytree(folk, run)
    damage(run / "adapters/main")
    with pytest.raises(PartitaError, match=words):
        partita.load(base, adapters={run: 1})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 10**400, True, "1"])
def test_weights_are_numbers(base, folk, weight):
    with pytest.raises(PartitaError, match=r"must be a number, such as 1 or 0\.7"):
        partita.load(base, adapters={folk: weight})


def test_from_the_command_line(base, folk, tmp_path, monkeypatch, capfd):
    def cli(*arguments):
        return run_cli(*arguments, monkeypatch=monkeypatch, capfd=capfd)

    def audio(name, *arguments):
        cli("generate", *arguments, "tone 1", "-d", "0.5", "-o", tmp_path / f"{name}.wav")
        return (tmp_path / f"{name}.wav").read_bytes()

    plain = audio("plain", base)
    assert audio("none", base, "--adapter", f"{folk}=0") == plain
    assert audio("half", base, "--adapter", f"{folk}=0.5") != plain
    assert audio("run", folk) == audio("all", base, "--adapter", folk)
    status, text = cli("generate", base, "tone 1", "--adapter", folk, "--adapter", f"{folk}/", "-o", tmp_path / "x.wav")
    assert status
    assert "twice" in text
    takes = "takes a run or hub id with a weight"
    for wrong, words in ((f"{folk}=much", takes), ("=0.5", takes), ("nowhere", "no finished adapter")):
        status, text = cli("generate", base, "tone 1", "--adapter", wrong, "-o", tmp_path / "x.wav")
        assert status
        assert words in text
    _, checked = cli("check", base / "recipe.yaml", f"finetune={base}", "stages.main.adapter=dora")
    assert "6 steps of 2 of its adapter dora" in " ".join(checked.split())


def test_the_report_has_clips_with_and_without_it(base, tmp_path):
    partita.train(adapted(base), tmp_path / "run", progress=False)
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("(with the adapter)") == page.count("(without it)") > 0
    size = sum(value.numel() for value in load_file(tmp_path / "run/adapters/main/adapter_model.safetensors").values())
    whole = Part.load(base / "stages/main").num_own_parameters
    assert f"{size:,} parameters, {size / whole:.1%} of those of the stage" in page


def files_of(hub, repo_id):
    repository = hub.repositories[repo_id]
    return repository.commits[repository.refs["main"]].files


def test_pushed_alone_and_the_same_when_it_comes_back(hub, base, folk, tmp_path):
    with pytest.raises(PartitaError, match="push that system first, and name it with --base user/name"):
        partita.push(folk, "alice/folk", examples=0)
    preview = partita.preview_push(folk, "alice/folk", tmp_path / "dry", examples=1, base="alice/base")
    partita.push(base, "alice/base", examples=0)
    partita.push(folk, "alice/folk", examples=1, license="cc-by-4.0", base="alice/base")
    pushed = files_of(hub, "alice/folk")
    assert set(pushed) - {".gitattributes"} == set(preview)  # made before the system was on the Hub
    names = set(preview)
    assert {name for name in names if not name.startswith("samples/")} == {
        "README.md",
        "recipe.yaml",
        *(f"adapters/main/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "base.json")),
    }
    assert {"samples/1-with.flac", "samples/1-without.flac"} <= names
    card = pushed["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "alice/base"
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["license"] == "cc-by-4.0"
    assert "--adapter alice/folk=0.7" in card
    assert str(base).encode() not in b"".join(pushed.values())
    expected = clip(partita.load(folk))
    assert torch.equal(clip(partita.load("alice/folk")), expected)
    assert torch.equal(clip(partita.load("alice/base", adapters={"alice/folk": 1})), expected)
    with pytest.raises(PartitaError, match="holds a system of its own, no adapters: remove --base"):
        partita.push(base, "alice/base", base="alice/base")


def test_pushed_for_another_base_it_is_refused(hub, bases, folk):
    partita.push(bases["diffusion"], "alice/other", examples=0)
    with pytest.raises(PartitaError, match="this system has other weights there"):
        partita.push(folk, "alice/folk", examples=0, base="alice/other")


def test_variants_of_an_adapter_are_trained_and_merged(base, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"base": str(base / "recipe.yaml"), "finetune": str(base)}))
    vary = ["stages.main.adapter={name: lora, rank: 1},dora"]
    runs, _ = make_runs(partita.read_ablation(recipe, vary, []))
    stage, codec = PartKey("stages/main"), PartKey("tokenizers/acoustic")
    assert len({identity_of(run, stage) for run in runs}) == 2
    assert len({identity_of(run, codec) for run in runs}) == 1
    for number, run in enumerate(runs):
        text = yaml.safe_dump(recipe_of(run, stage))
        task = Task(f"task-{number}", "train", "the stage", f"run-{number}", text, part="stages/main")
        task.write(tmp_path)
        perform_task(tmp_path, task.key)
        assert task.done(tmp_path)
        merged = Part.load(tmp_path / task.folder / "stages/main").exported_state()
        added = partita.load(base, adapters={tmp_path / task.folder: 1}).stages["main"].exported_state()
        assert same(merged, added)
        assert not same(merged, Part.load(base / "stages/main").exported_state())
