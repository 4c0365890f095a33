"""Textual inversion: pseudo-words are read, learned, saved and shared, and change nothing else."""

import json
import shutil

import pytest
import torch
import yaml

import partita
from partita.conditioners.lookup import Lookup
from partita.conditioners.t5 import T5, T5Shape
from partita.core.contracts import Clip
from partita.recipe.plan import load_recipe
from partita.storage.tensor_file import read_tensors, write_tensors
from partita.system.system import System

RATE = 16000
WORDS = ["a slow chorale for church organ", "harp"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small system with random weights that reads prompts."""
    folder = tmp_path_factory.mktemp("inversion")
    recipe = {
        "base": "chorales-tiny",
        "tokenizers": {
            "acoustic": {
                "preset": "spectral-tiny",
                "autoencoder": {"encoder_width": 8, "encoder_depth": 1, "decoder_width": 16, "decoder_depth": 1},
            }
        },
        "stages": {"acoustic": {"generator": {"backbone": {"width": 32, "depth": 2, "num_heads": 2}}, "window": 1}},
        "data": {"limit": 12},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torch.manual_seed(0)
    made = System(load_recipe(folder / "recipe.yaml"))
    for parameter in made.stages["acoustic"].conditioning.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that prompts matter
    made.save(folder / "system")
    return folder / "system"


@pytest.fixture(scope="module")
def learned(saved, tmp_path_factory):
    """The folder of a pseudo-word with three vectors, and the losses that were reported."""
    folder = tmp_path_factory.mktemp("words") / "song"
    tone = 0.5 * torch.sin(torch.arange(2 * RATE) * 2 * torch.pi * 440 / RATE)
    system = partita.load(saved)
    before = {key: part.weights_fingerprint() for key, part in system.parts.items()}
    options = partita.Inversion(start="slow quiet music", steps=40, batch_size=4, lr=0.1)
    losses = partita.invert(system, tone[None], "song", folder, prompts=["harp"], options=options)
    assert {key: part.weights_fingerprint() for key, part in system.parts.items()} == before
    return folder, losses


def test_words_and_pseudo_words_are_embedded_in_their_order():
    lookup = Lookup(dim=4, num_embeddings=32)
    vectors = torch.randn(2, 4)
    lookup.pseudo_words.add("one", torch.randn(1, 4))
    lookup.pseudo_words.add("my-song", vectors)
    texts = ["Slow <my-song>, organ", "harp", "<other> <MY-SONG>"]
    made = lookup(lookup.prepare([Clip({"text": text}, 1.0) for text in texts])).values
    expected = torch.cat([lookup.word_vectors("slow"), vectors, lookup.word_vectors("organ")])
    assert torch.equal(made[0], expected)
    assert torch.equal(made[1, :1], lookup.word_vectors("harp"))
    assert not made[1, 1:].any()
    assert torch.equal(made[2, :3], lookup.word_vectors("other my song"))  # names are told apart by case
    assert not any("pseudo" in name for name in lookup.exported_state())


def test_pseudo_words_enter_t5_before_its_encoder(t5_checkpoint):
    folder = t5_checkpoint("relu", WORDS)
    t5 = T5(shape=T5Shape(width=16, depth=2, num_heads=2, head_width=8, feed_forward_width=24, vocabulary=64))
    t5.load_weights(folder)
    t5.eval()
    plain = t5(t5.prepare([Clip({"text": "slow harp"}, 1.0)]))
    t5.pseudo_words.add("song", vectors := torch.randn(2, 16))
    torch.testing.assert_close(t5(t5.prepare([Clip({"text": "slow harp"}, 1.0)])).values, plain.values)
    prepared = t5.prepare([Clip({"text": "slow <song> harp"}, 1.0), Clip({"text": "harp"}, 1.0)])
    tokens = prepared["tokens"][0]
    first = int((tokens >= 64).nonzero()[0])
    assert tokens[first : first + 2].tolist() == [64, 65]
    embedded = t5.encoder.embed_tokens(tokens.clamp(max=63)).detach().clone()
    embedded[first : first + 2] = vectors
    expected = t5.encoder(inputs_embeds=embedded[None]).last_hidden_state
    torch.testing.assert_close(t5(prepared).values[:1], expected)
    t5.pseudo_words.vectors["song"].requires_grad_()
    t5(prepared).values.square().sum().backward()
    assert t5.pseudo_words.vectors["song"].grad.abs().sum() > 0


def test_the_loss_of_the_recording_falls(learned):
    _, losses = learned
    assert list(losses) == ["<song>", "slow quiet music", "harp"]
    assert losses["<song>"] < 0.9 * min(losses["slow quiet music"], losses["harp"])


def test_a_saved_word_is_read_again(saved, learned, tmp_path):
    folder, _ = learned
    system = partita.load(saved, words=[folder])
    sampling = {"temperature": 0.0}

    def codes(of, prompt):
        return of.generate_representations([prompt], duration=0.5, sampling=sampling)["acoustic"].values

    with_it, plain = codes(system, "slow <song>"), partita.load(saved)
    assert not torch.equal(with_it, codes(plain, "slow <song>"))  # where it is unknown, it is the word song
    assert torch.equal(codes(plain, "slow song"), codes(plain, "slow <song>"))
    assert torch.equal(codes(system, "slow harp"), codes(plain, "slow harp"))
    vectors = read_tensors(folder / "word.safetensors")["vectors"]
    assert torch.equal(system.conditioners["text"].pseudo_words.vectors["song"], vectors)
    system.save(tmp_path / "saved")  # the word is not part of the system
    assert torch.equal(codes(partita.load(tmp_path / "saved"), "slow harp"), codes(plain, "slow harp"))


def test_a_shared_word_is_loaded_from_the_hub(saved, learned, hub):
    folder, losses = learned
    partita.push(folder, "alice/song", license="cc-by-4.0", base="alice/base")
    files = hub.repositories["alice/song"].commits[hub.repositories["alice/song"].refs["main"]].files
    assert set(files) >= {"README.md", "word.json", "word.safetensors"}
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "alice/base"
    assert f"| <song> | {losses['<song>']:.4f} |".replace("<", "‹").replace(">", "›") in card
    system, here = partita.load(saved, words=["alice/song"]), partita.load(saved, words=[folder])
    prompt, options = ["a harp like <song>"], {"duration": 0.3, "seed": 4}
    assert torch.equal(system.generate(prompt, **options), here.generate(prompt, **options))


def change(folder, **values):
    about = json.loads((folder / "word.json").read_text())
    (folder / "word.json").write_text(json.dumps(about | values))


def hold(**tensors):
    return lambda folder: write_tensors(tensors, folder / "word.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "word.json").unlink(), "holds no pseudo-word: there is no word.json"),
        (lambda folder: (folder / "word.json").write_text("{"), "word.json"),
        (lambda folder: (folder / "word.safetensors").unlink(), "word.safetensors"),
        (lambda folder: (folder / "word.safetensors").write_bytes(b"\x01"), "no safetensors file"),
        (lambda folder: change(folder, word=3), "does not say which word"),
        (lambda folder: change(folder, word="two words"), "a pseudo-word has at most 64 letters"),
        (lambda folder: change(folder, fingerprint="0"), "belongs to another lookup than conditioners.text"),
        (hold(vectors=torch.zeros(3, 7)), r"instead of vectors \[n, 256\]"),
        (hold(vectors=torch.zeros(0, 256)), r"instead of vectors \[n, 256\]"),
        (hold(other=torch.zeros(3, 256)), r"instead of vectors \[n, 256\]"),
        (hold(vectors=torch.full((1, 256), torch.nan)), "no finite floating-point numbers"),
        (hold(vectors=torch.zeros(1, 256, dtype=torch.int32)), "no finite floating-point numbers"),
    ],
)
def test_damaged_and_foreign_words_are_refused(saved, learned, tmp_path, spoil, said):
    shutil.copytree(learned[0], tmp_path / "word")
    spoil(tmp_path / "word")
    with pytest.raises(partita.PartitaError, match=said):
        partita.load(saved, words=[tmp_path / "word"])


def test_mistakes_are_named(saved, learned, saved_toy, tmp_path):
    tone = torch.zeros(1, RATE)
    with pytest.raises(partita.PartitaError, match="<song> is known already"):
        partita.load(saved, words=[learned[0], learned[0]])
    with pytest.raises(partita.PartitaError, match="words must be a list"):
        partita.load(saved, words=str(learned[0]))
    system = partita.load(saved)
    for recording, name, options, said in (
        ("nowhere.wav", "song", {}, "nowhere.wav"),
        (tone, "a b", {}, "a pseudo-word has at most 64 letters"),
        (tone, "song", {"start": "!"}, "start has no word"),
    ):
        with pytest.raises(partita.PartitaError, match=said):
            partita.invert(system, recording, name, tmp_path / "new", options=partita.Inversion(**options))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="lr must be above 0"):
        partita.Inversion(lr=0.0)
    with pytest.raises(partita.PartitaError, match="pseudo-words are for prompts that lookup or t5 reads"):
        partita.invert(partita.load(saved_toy), tone, "song", tmp_path / "new")
