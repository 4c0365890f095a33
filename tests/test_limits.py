"""What a stranger's file can claim: refused before memory is taken or work is done, unless one says otherwise."""

import base64
import json
import os
import resource
import struct

import pytest
import torch
import yaml

import partita
from partita import limits
from partita.layers.mel import MelSpectrum
from partita.recipe.plan import load_recipe
from partita.recipe.recipe_files import read_yaml, recipes
from partita.storage.text_tokenizer import check_text_tokenizer, read_text_tokenizer
from partita.storage.untrusted import read_header, read_json
from partita.system.outline import outlining
from partita.system.system import System
from saved_systems import change


def refused(match, attempt, *arguments):
    """It is refused with one message, and less than 300 MB are spent on it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(partita.PartitaError, match=match) as error:
        attempt(*arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    return str(error.value)


@pytest.fixture
def saved(toy_recipe, tmp_path):
    System(load_recipe(toy_recipe)).save(tmp_path / "system")
    return tmp_path / "system"


def test_every_limit_is_lifted_by_one_variable_which_the_message_names(toy_recipe, monkeypatch):
    override = ["stages.main.window=9000"]
    assert "PARTITA_LIMITS=off" in refused("a window of 9000 s", System.checked, toy_recipe, override)
    monkeypatch.setenv("PARTITA_LIMITS", "off")
    assert System.checked(toy_recipe, override).plan.stages["main"].window == 9000


@pytest.mark.parametrize(("overlap", "fits"), [(4.99, False), (4.9, True), (4.0, True), (5.0, False), (0, True)])
def test_an_overlap_that_is_the_whole_window_in_frames(toy_recipe, overlap, fits):
    """Frames here are 25 ms: with 4.99 s of 5 s kept, not one would be new."""
    overrides = ["stages.main.window=5", f"stages.main.overlap={overlap}"]
    if fits:
        System.checked(toy_recipe, overrides)
    else:
        assert "stages.main.overlap" in refused("overlap", System.checked, toy_recipe, overrides)


@pytest.mark.parametrize("duration", [1e9, 3601.0])
def test_a_clip_has_a_longest_duration(saved, duration):
    system = partita.load(saved)
    refused("limit of 3600 s", lambda: system.generate(["tone 1"], duration=duration))
    assert system.generate(["tone 1"], duration=0.5).shape[-1] == 2000


def test_a_window_as_long_as_a_year_in_a_saved_system(saved):
    change(saved, "stages.main.window", 9_000_000)
    refused("window of .* exceeds the limit", partita.load, saved)


def test_windows_without_end_in_the_arguments_of_a_part(tmp_path):
    """12.7 GB of analysis windows, all of which a constructor makes on the CPU."""
    recipe = {"tokenizers": {"acoustic": {"preset": "spectral-tiny", "spectral": {"windows": [9_999_999] * 200}}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": "toy-sines"}))
    refused("its constants take", System.checked, tmp_path / "recipe.yaml")


def test_windows_without_end_in_the_arguments_of_an_inner_part(tmp_path):
    features = "{preset: best-rq-tiny, targets: {chroma_seconds: 1.0e+9}, windows: {seconds: 1.0e+9}}"
    (tmp_path / "recipe.yaml").write_text(
        f"tokenizers: {{semantic: {{name: kmeans, features: {features}}}}}\ndata: chorales\n"
    )
    refused(r"semantic\.features: its constants take", System.checked, tmp_path / "recipe.yaml")


def test_memory_is_counted_before_it_is_taken():
    def build():
        with outlining():
            MelSpectrum(24000, 9_999_999)  # a filterbank of 3.2 GB

    refused("its constants take", build)
    with outlining():
        small = MelSpectrum(24000, 1024)
        assert torch.nn.Linear(1_000_000, 1_000_000).weight.is_meta
    assert torch.allclose(small.filterbank, MelSpectrum(24000, 1024).filterbank)


def test_what_is_shipped_is_far_from_the_limits_of_outlines(monkeypatch):
    monkeypatch.setattr("partita.system.outline.MOST_OUTLINED", limits.MOST_OUTLINED // 4)
    monkeypatch.setattr("partita.system.outline.MOST_LAYERS", limits.MOST_LAYERS // 5)
    for name in recipes():
        System.outline(load_recipe(name))


def test_check_refuses_layers_without_end(toy_recipe):
    generator = (
        "{name: autoregressive, backbone: {name: transformer, width: 8, num_heads: 2, depth: 9000000}, fit: {steps: 1}}"
    )
    message = refused("layers and weights", System.checked, toy_recipe, [f"stages.main.generator={generator}"])
    assert "stages.main.generator" in message


def tensors(path, fusions, data=b""):
    text = json.dumps(fusions).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_empty_tensors_do_not_buy_layers(saved):
    empty = {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    tensors(saved / "stages/main/model.safetensors", empty)
    change(
        saved,
        "stages.main.generator",
        {"name": "autoregressive", "backbone": {"name": "transformer", "width": 8, "num_heads": 2, "depth": 100_000}},
    )
    refused("layers and weights", partita.load, saved)


def test_a_tensor_of_very_many_dimensions(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors(path, {"x": {"dtype": "F32", "shape": [(1 << 47) + i for i in range(100_000)], "data_offsets": [0, 4]}})
    refused("does not describe 'x'", read_header, path)


@pytest.mark.parametrize("kind", ["pipe", "endless", "device"])
def test_what_never_ends_is_not_waited_for(toy_recipe, tmp_path, kind):
    path = tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    else:  # as /proc/kmsg is: a file of size 0, by its status a regular one, that yields without end
        path = "/dev/zero" if kind == "device" else "/proc/self/environ"
    recipe = yaml.safe_load(toy_recipe.read_text())
    (tmp_path / "based.yaml").write_text(yaml.safe_dump({"base": str(path)}))
    refused("not a regular file|must hold a mapping|must be given", System.checked, tmp_path / "based.yaml")
    refused("not a regular file|must hold a mapping|must be given", System.checked, path)
    for read in (read_json, read_header):
        refused("not a regular file|not valid JSON|no safetensors", read, type(tmp_path)(path))
    recipe["tokenizers"]["acoustic"]["weights"] = str(path)
    del recipe["tokenizers"]["acoustic"]["fit"]
    toy_recipe.write_text(yaml.safe_dump(recipe))


def test_a_stage_that_would_draw_without_end(toy_recipe, tmp_path):
    recipe = yaml.safe_load(toy_recipe.read_text())
    recipe["stages"]["main"]["target"] = "acoustic/latents"
    small = {"encoder_width": 8, "decoder_width": 8, "encoder_depth": 1, "decoder_depth": 1}
    recipe["tokenizers"]["acoustic"] = {"preset": "spectral-tiny", "autoencoder": small}
    recipe["stages"]["main"]["generator"] = {
        "preset": "flow-tiny",
        "denoiser": {"width": 8, "depth": 1, "num_heads": 2},
    }
    toy_recipe.write_text(yaml.safe_dump(recipe))
    system = System(load_recipe(toy_recipe))
    refused("steps exceed the limit", lambda: system.generate(["tone 1"], duration=0.2, sampling={"steps": 5_000_000}))


def test_whole_numbers_of_very_many_digits(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text, match in (("9" * 9000, "thousands of digits"), ("0x" + "f" * 9000, "bits"), ("9" * 30, "bits")):
        path.write_text(f"seed: {text}\n")
        refused(match, read_yaml, path)
        refused(match, load_recipe, "chorales-tiny", [f"seed={text}"])


def test_names_that_no_file_can_have(toy_recipe, tmp_path):
    name = "x" * 300
    refused("no recipe", load_recipe, name)
    refused("neither a folder", partita.load, name)
    refused("there is no file|no recipe", load_recipe, f"{name}/y.yaml")
    refused("no tokenizer is called", load_recipe, toy_recipe, [f"tokenizers.acoustic={name}"])
    (tmp_path / "based.yaml").write_text(f"base: {name}\n")
    refused("no recipe", load_recipe, tmp_path / "based.yaml")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The folder of a text tokenizer as transformers writes it, with T5's way of normalizing."""
    import sentencepiece
    import transformers

    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("words")
    (folder / "text.txt").write_text("a slow flute plays\nthe fast organ\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=20, minloglevel=2
    )
    made = sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))
    vocabulary = [(made.id_to_piece(i), made.get_score(i)) for i in range(made.get_piece_size())]
    blob = made.serialized_model_proto()
    start = blob.rfind(b"nmt_nfkc") + len(b"nmt_nfkc")  # the next field: tag, length as a varint, bytes
    size, shift, at = 0, 0, start + 1
    while True:
        size |= (blob[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not blob[at - 1] & 0x80:
            break
    built = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    built.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(blob[at : at + size]), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "good")
    return folder / "good"


def test_a_text_tokenizer_as_it_should_be_is_read(words):
    assert read_text_tokenizer(words)(["ａ ﬂute"])["input_ids"] == read_text_tokenizer(words)(["a flute"])["input_ids"]


CHARSMAP = base64.b64encode(struct.pack("<II", 4, 0xFFFFFFFF) + b"\0").decode()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"padding": {"strategy": {"Fixed": 2_000_000_000}}}, "pads every text"),
        ({"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 10**9}}, "pads every text"),
        ({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}] * 6}}, "times as long"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "leads outside itself"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}}, "leads outside itself"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}}, "take ages"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}] * 100_000}},
         "a list of 100,000"),
        ({"model": {"type": "Unigram", "vocab": [["x" * 100_000, 0.0]]}}, "longest word of 100,000"),
        ({"model": []}, "describes no model"),
        ({"model": {}}, "no vocabulary"),
        ({"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}}, "cannot be read"),
        ({"added_tokens": [{"id": 5}] * 100_000}, "a list of 100,000"),
        ({"version": "9.0"}, "cannot be read"),
    ],
)  # fmt: skip
def test_a_hostile_text_tokenizer(words, tmp_path, changes, match):
    for file in words.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((words / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | changes))
    refused(match, read_text_tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"extra_ids": 20_000_000}, "extra_ids is more"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "not one of"),
        ({"additional_special_tokens": ["x"] * 50_000}, "a list of 50,000"),
        ({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "names code"),
    ],
)
def test_a_hostile_configuration_of_a_text_tokenizer(words, tmp_path, config, match):
    content = json.loads((words / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content | config))
    refused(match, check_text_tokenizer, tmp_path)


@pytest.mark.parametrize("kind", ["complex64", "int64", "bool"])
def test_weights_of_another_kind_of_number(saved, kind):
    from safetensors.torch import load_file, save_file

    path = saved / "stages/main/model.safetensors"
    state = {name: tensor.to(getattr(torch, kind)) for name, tensor in load_file(path).items()}
    save_file(state, path)
    refused("of another type", partita.load, saved)
    half = {name: tensor.float().half() for name, tensor in load_file(path).items() if kind != "complex64"}
    if half:  # another precision is no other kind
        save_file(half, path)
        assert partita.load(saved).stages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("num_codebooks=100000000", "100,000,000 codebooks exceed the limit"),
        ("embedding.window=1.0e+300", "window of 1e\\+300 s exceeds the limit"),
    ],
)
def test_endless_arguments_of_a_quantized_melody_embedding(tmp_path, change, message):
    (tmp_path / "recipe.yaml").write_text(
        "tokenizers: {acoustic: {name: toy-codec}}\n"
        "conditioners: {melody: melody-rvq-tiny}\n"
        "stages:\n  main: {generator: musiclm-tiny, target: acoustic, given: {melody: prepend}, window: 1}\n"
        "data: {preset: chorales, covers: true}\n"
    )
    refused(message, System.checked, tmp_path / "recipe.yaml", [f"conditioners.melody.{change}"])
