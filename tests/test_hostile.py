"""What strangers might put into a folder or a repository: refused with one message, and nothing touched or executed."""

import json
import os
import resource
import shutil
import struct
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

import partita
from hub_server import Hub
from partita.core.part import Part
from partita.limits import MOST_LISTED, SPARE_BYTES
from partita.publishing.pull import pull
from partita.recipe.plan import load_recipe
from partita.recipe.recipe_files import read_yaml, recipes
from partita.storage.pretrained import read_config, read_safetensors
from partita.storage.untrusted import read_header
from partita.system.system import System
from saved_systems import change

OPENED: list[str] | None = None


def _listen(event, arguments):
    if OPENED is not None and event == "open" and isinstance(arguments[0], str | bytes):
        OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_listen)  # cannot be taken away again, and does nothing unless asked


@pytest.fixture
def opened():
    """Paths that are opened while a test runs."""
    global OPENED
    OPENED = []
    yield OPENED
    OPENED = None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved system, as it should be."""
    from toys import TOY_RECIPE

    folder = tmp_path_factory.mktemp("saved")
    (folder / "toy.yaml").write_text(TOY_RECIPE)
    System(load_recipe(folder / "toy.yaml")).save(folder / "system")
    partita.load(folder / "system")
    return folder / "system"


@pytest.fixture
def system(saved, tmp_path):
    """A copy of it to spoil."""
    shutil.copytree(saved, tmp_path / "system")
    return tmp_path / "system"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    yield hub
    hub.close()


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(source, match, read=partita.load):
    """It is refused by one message, and no memory is spent on it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(partita.PartitaError, match=match):
        read(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def pickle_that_marks(path):
    """A pickle that makes a file when it is read."""
    return f"cos\nsystem\n(S'touch {path}'\ntR.".encode()


def test_pickles_are_neither_downloaded_nor_read(hub, system, tmp_path, opened):
    evil = pickle_that_marks(tmp_path / "owned")
    names = ("model.bin", "pytorch_model.bin", "x.pt", "stages/main/model.ckpt", "stages/main/x.pkl")
    files = files_of(system) | dict.fromkeys(names, evil)
    hub.put("mallory/toy", files)
    partita.load("mallory/toy")
    pull("mallory/toy", tmp_path / "pulled")
    assert not [path for _, path in hub.requests if path.endswith((".bin", ".pt", ".ckpt", ".pkl"))]
    for name in names:
        (system / name).write_bytes(evil)
    opened.clear()
    partita.load(system)
    assert not [path for path in opened if path.endswith((".bin", ".pt", ".ckpt", ".pkl"))]
    (system / "stages/main/model.safetensors").write_bytes(evil)
    refused(system, "no safetensors file")
    (system / "stages/main/model.safetensors").unlink()
    refused(system, "no weights yet")
    assert not (tmp_path / "owned").exists()


def header(fusions, data=b"", claimed=None):
    text = fusions if isinstance(fusions, bytes) else json.dumps(fusions).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no safetensors file"),
        (b"1234", "no safetensors file"),
        (header({}, claimed=2**63), "header claims"),
        (header({}, claimed=50_000_000), "header claims"),
        (header({"gain": tensor([1 << 40], 0, 1 << 42)}), "holds 0"),
        (header({"gain": tensor([], 0, 1 << 42)}), "does not describe"),
        (header({"gain": tensor([], 1 << 42, (1 << 42) + 4)}, bytes(4)), "gaps"),
        (header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "overlap"),
        (header({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}, bytes(8)), "overlap"),
        (header({"gain": tensor([], -4, 0)}, bytes(4)), "gaps"),
        (header({"gain": tensor([-1, -1], 0, 4)}, bytes(4)), "does not describe"),
        (header({"gain": tensor([10**30, 0], 0, 0)}), "does not describe"),
        (header({"gain": tensor([True], 0, 4)}, bytes(4)), "does not describe"),
        (header({"gain": tensor([], 0, 4, "PICKLE")}, bytes(4)), "does not describe"),
        (header({"gain": tensor([], 0, 4)}, bytes(8)), "holds 8"),
        (header({"gain": [1, 2]}), "does not describe"),
        (header(b"[" * 100_000), "not valid JSON"),
        (header(b'{"gain": {}, "gain": {}}'), "twice"),
        (header(b"\xff\xfe{}"), "not valid JSON"),
        (header(b"[]"), "not a JSON object"),
    ],
)
def test_safetensors_that_claim_what_they_do_not_hold(system, content, words):
    path = system / "tokenizers/acoustic/model.safetensors"
    path.write_bytes(content)
    refused(system, words)
    with pytest.raises(partita.PartitaError, match=words):
        Part.load(path.parent)
    with pytest.raises(partita.PartitaError, match=words):
        read_safetensors(path.parent, lambda name: True)


def test_a_header_is_as_safetensors_reads_it(system):
    from safetensors import safe_open

    for path in system.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            expected = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert {name: shape for name, (_, shape) in read_header(path).items()} == expected


def test_a_config_that_is_huge_or_nested_without_end(system):
    path = system / "tokenizers/acoustic/config.json"
    for content, words in ((b"[" * 500_000, "not valid JSON"), (b'{"a":' * 100_000, "not valid JSON")):
        path.write_bytes(content)
        refused(system, words)
    with path.open("wb") as file:
        file.truncate(100_000_000)
    refused(system, "more than such a file")
    for read in (read_config, Part.load):
        with pytest.raises(partita.PartitaError, match="more than such a file"):
            read(path.parent)
    path.write_text('{"format": 2, "family": "generator", "name": "toy-bigram", "arguments": {}}')
    refused(system, "recipe names the tokenizer 'toy-codec'")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("stages.main.generator.width", 10**9, "larger than any argument of a part"),
        (
            "stages.main.generator.width",
            10_000_000,
            "of another shape",
        ),  # a terabyte of embeddings it has no weights of
        ("stages.main.generator.width", float("inf"), "larger than any argument of a part"),
        ("conditioners.text.dim", 9_999_999, "of another shape"),
    ],
)
def test_numbers_that_would_take_terabytes(system, key, value, words):
    change(system, key, value)
    refused(system, words)


def test_more_layers_than_there_are_weights(system):
    change(
        system,
        "stages.main.generator",
        {
            "name": "autoregressive",
            "backbone": {"name": "transformer", "width": 8, "num_heads": 2, "depth": 9_000_000},
            "fit": {"steps": 1},
        },
    )
    refused(system, "layers and weights, far more than")


def test_parts_that_only_training_needs_count_too(tmp_path):
    """Discriminators are not saved, and yet they are built."""
    recipe = tmp_path / "codec.yaml"
    small = {"encoder_width": 8, "decoder_width": 8, "encoder_depth": 1, "decoder_depth": 1}
    codec = {"preset": "spectral-tiny", "autoencoder": small, "dim": 8}
    recipe.write_text(yaml.safe_dump({"tokenizers": {"acoustic": codec}, "data": "toy-sines"}))
    System(load_recipe(recipe)).save(tmp_path / "system")
    partita.load(tmp_path / "system")
    change(tmp_path / "system", "tokenizers.acoustic.discriminator.stft_width", 100_000)
    refused(tmp_path / "system", "far more than its weights")


def test_what_is_shipped_is_far_from_the_limits():
    for name in recipes():
        outline = System.outline(load_recipe(name))
        for part in outline.parts.values():
            saved = sum(t.numel() * t.element_size() for t in part.exported_state().values())
            whole = sum(t.numel() * t.element_size() for t in (*part.parameters(), *part.buffers()))
            assert whole < (16 * saved + SPARE_BYTES) / 2


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizers.acoustic.name", "os.system", "no tokenizer is called 'os.system'"),
        ("tokenizers.acoustic.name", "../../etc/passwd", "no tokenizer is called"),
        ("stages.main.generator.name", "/etc/passwd", "no generator is called"),
        ("tokenizers.acoustic.preset", "../../../../etc/passwd", "cannot name presets"),
        ("data", "../../etc/passwd", "no data is called"),
        ("base", "../../../../../../etc/passwd", "cannot name another file"),
        ("base", "/etc/passwd", "cannot name another file"),
        ("description", "${oc.env:HOME}", "cannot refer"),
        ("description", "${seed}", "cannot refer"),
        ("_target_", "os.system", "there is no such key"),
        ("stages.main.generator._target_", "os.system", "there is no such key"),
    ],
)
def test_names_that_are_paths_or_code(system, key, value, words, opened):
    change(system, key, value)
    refused(system, words)
    assert not [path for path in opened if "passwd" in path]


def test_a_name_that_leads_out_of_the_folder(system):
    recipe = yaml.safe_load((system / "recipe.yaml").read_text())
    recipe["tokenizers"]["../../outside"] = recipe["tokenizers"]["acoustic"]
    (system / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    refused(system, "cannot be used as a name")


def test_loading_reads_no_data_and_no_weights_from_elsewhere(system, tmp_path, opened):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "song.wav").write_bytes(b"RIFF")
    change(system, "data", {"name": "folder", "path": str(outside), "manifest": str(outside / "song.csv")})
    change(system, "tokenizers.acoustic.weights", str(outside / "song.wav"))
    change(system, "tokenizers.acoustic.fit", {})
    opened.clear()
    partita.load(system).generate(["tone 1"], duration=0.2)
    assert [path for path in opened if str(system) in path]
    assert not [path for path in opened if str(outside) in path]


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "stages/main/model.safetensors", "stages/main/config.json", "tokenizers/acoustic", "stages"]
)
def test_links_out_of_the_folder(system, tmp_path, name, opened):
    target = tmp_path / "outside" / name
    target.parent.mkdir(parents=True)
    shutil.move(system / name, target)
    (system / name).symlink_to(target)
    opened.clear()
    refused(system, "leads out of its folder")
    assert not [path for path in opened if "outside" in path]
    (system / name).unlink()
    (system / name).symlink_to(name.split("/")[-1])  # to itself
    refused(system, r"cannot be read|is not a saved system|no weights yet")


def test_links_within_the_folder_and_of_the_cache_of_the_hub_are_followed(system, tmp_path):
    weights = system / "stages/main/model.safetensors"
    shutil.move(weights, system / "blob")
    weights.symlink_to("../../blob")
    partita.load(system)
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    shutil.move(system, cache / "snapshots" / "c")
    weights = cache / "snapshots/c/stages/main/model.safetensors"
    shutil.move(cache / "snapshots/c/blob", cache / "blobs/1")
    weights.unlink()
    weights.symlink_to("../../../../blobs/1")
    partita.load(cache / "snapshots/c")
    shutil.move(cache / "blobs", tmp_path / "elsewhere")
    (cache / "blobs").symlink_to(tmp_path / "elsewhere")
    refused(cache / "snapshots/c", "leads out of its folder")


def test_what_is_no_regular_file(system):
    (system / "stages/main/model.safetensors").unlink()
    os.mkfifo(system / "stages/main/model.safetensors")
    refused(system, "not a regular file|no weights yet")
    (system / "recipe.yaml").unlink()
    os.mkfifo(system / "recipe.yaml")
    refused(system, "not a regular file|is not a saved system")


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "expands to"),
        (MERGED, "expands to"),
        ("a: &a [*a]", "contains itself"),
        ("#" * 10_000_000, "more than such a file can have"),
        ("[" * 100_000, "nested more than"),
        ("a: !!python/object/apply:os.system ['touch /tmp/owned-by-yaml']", "not valid YAML"),
    ],
)
def test_yaml_bombs(system, text, words):
    (system / "recipe.yaml").write_text(text)
    refused(system, words)
    refused(system / "recipe.yaml", words, read_yaml)
    assert not Path("/tmp/owned-by-yaml").exists()


def test_anchors_that_expand_to_little_are_welcome(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    "name",
    [
        "../escape.yaml",
        "a/../../escape.json",
        "/etc/x.json",
        "a//b.json",
        "a\nb.json",
        "\x1b[2J.json",
        "a\\b.json",
    ],
)
def test_file_names_of_a_repository(hub, system, tmp_path, name):
    hub.put("mallory/toy", files_of(system) | {name: b"{}"})
    refused("mallory/toy", "holds a file with the name")
    assert not [path for _, path in hub.requests if "/resolve/" in path]
    assert not (tmp_path / "cache").exists()


def test_a_repository_of_very_many_files(hub, system):
    hub.put("mallory/many", files_of(system) | {f"x/{i}.json": b"" for i in range(100_000)})
    refused("mallory/many", f"more than {MOST_LISTED:,} files")
    assert len([path for _, path in hub.requests if "/tree/" in path]) <= 11
    hub.put("mallory/some", files_of(system) | {f"x/{i}.json": b"" for i in range(2_000)})
    refused("mallory/some", "files to download")
    hub.put("mallory/large", files_of(system) | {"huge.yaml": bytes(2_000_000)})
    refused("mallory/large", "huge.yaml has 2,000,000 bytes")
    assert not [path for _, path in hub.requests if "/resolve/" in path]


def test_a_pulled_system_is_checked_before_it_is_kept(hub, system, tmp_path):
    change(system, "base", "/etc/passwd")
    hub.put("mallory/toy", files_of(system))
    with pytest.raises(partita.PartitaError, match="cannot name another file"):
        pull("mallory/toy", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map names code"),
        ({"vocab_file": "/etc/passwd"}, "vocab_file names code, or a file elsewhere"),
    ],
)
def test_a_text_tokenizer_that_names_code_or_files(t5_checkpoint, toy_recipe, tmp_path, config, words):
    small = {"width": 16, "feed_forward_width": 24, "depth": 2, "num_heads": 2, "head_width": 8, "vocabulary": 64}
    weights = t5_checkpoint("relu", ["a slow flute", "a fast flute"])
    recipe = yaml.safe_load(toy_recipe.read_text())
    recipe["conditioners"]["text"] = {"name": "t5", "weights": str(weights), "shape": small}
    toy_recipe.write_text(yaml.safe_dump(recipe))
    system = System(load_recipe(toy_recipe))
    system.conditioners["text"].load_weights(weights)
    system.save(tmp_path / "system")
    assert partita.load(tmp_path / "system").generate(["a flute"], duration=0.2).shape[-1] == 800
    path = tmp_path / "system/conditioners/text/tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    refused(tmp_path / "system", words)
