"""Publishing and fetching against a server that speaks the Hub's protocol, through the installed client."""

import json
import shutil

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import partita
from command_line import run as run_cli
from partita.publishing.card import collect, model_card
from partita.publishing.push import Commit, push, write_out
from partita.recipe.plan import load_recipe
from partita.storage.download import fetch
from partita.training.training import train

EXPECTED = {
    "README.md",
    "conditioners/text/config.json",
    "conditioners/text/model.safetensors",
    "recipe.yaml",
    "stages/main/config.json",
    "stages/main/model.safetensors",
    "tokenizers/acoustic/config.json",
    "tokenizers/acoustic/model.safetensors",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of toy parts, with logs and checkpoints and what else lies in a run."""
    from toys import TOY_RECIPE

    folder = tmp_path_factory.mktemp("trained")
    (folder / "toy.yaml").write_text(TOY_RECIPE)
    train(load_recipe(folder / "toy.yaml"), folder / "run")
    (folder / "run" / "checkpoints").mkdir(exist_ok=True)
    (folder / "run" / "checkpoints" / "left.ckpt").write_bytes(b"a pickle")
    (folder / "run" / "report.html").write_text("<html>")
    figures = {"frechet": {"value": 12.345678, "low": 11.5, "high": 13.25}, "clips": 48}
    (folder / "run" / "evaluation").mkdir()
    (folder / "run" / "evaluation" / "evaluation.json").write_text(json.dumps({"metrics": figures}))
    return folder / "run"


@pytest.fixture
def cli(monkeypatch, capfd):
    return lambda *arguments: run_cli(*arguments, monkeypatch=monkeypatch, capfd=capfd)


def clip(system):
    return system.generate(["tone 1", "tone 3"], duration=0.5, seed=7)


def changed(run, folder):
    """The same run with other weights of the stage."""
    shutil.copytree(run, folder)
    weights = folder / "stages/main/model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights)
    return folder


def test_pushed_in_one_commit_and_the_same_when_it_comes_back(hub, cli, trained):
    status, text = cli("push", trained, "alice/toy", "--revision-tag", "v1", "--license", "apache-2.0", "-m", "first")
    assert status == 0, text
    repository = hub.repositories["alice/toy"]
    commit = repository.commits[repository.refs["main"]]
    assert (len(repository.commits), commit.message, repository.private) == (2, "first", False)
    samples = {f"samples/{i}.{kind}" for i in (1, 2, 3) for kind in ("flac", "png")}
    assert commit.files.keys() == EXPECTED | samples | {"evaluation.json", ".gitattributes"}
    assert torch.equal(clip(partita.load("alice/toy")), clip(partita.load(trained)))
    assert not [path for _, path in hub.requests if "/resolve/" in path and path.endswith((".flac", ".png", ".md"))]


def test_the_card_says_what_one_should_know(hub, trained):
    push(trained, "alice/toy", license="cc-by-4.0")
    card = hub.repositories["alice/toy"].commits[hub.repositories["alice/toy"].refs["main"]].files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["library_name"], metadata["license"]) == ("partita", "cc-by-4.0")
    assert metadata["pipeline_tag"] == "text-to-audio"
    figures = {m["name"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert figures == {"frechet": 12.345678, "clips": 48}
    for words in (
        'partita.load("alice/toy")',
        "flowchart LR",
        'conditioner_text -->|"text, cross"| stage_main',
        "| stages/main | random | 8 | 2 | 1 s | 16 s | 0.0003 |",  # 8 steps of 2 clips of 1 s
        "| conditioners/text | – | with its stage |",
        "| frechet | 12.35 | 11.5 to 13.25 |",
        "samples/1.flac",
        "toy-sines",
        "- toy-sines: license not stated",
    ):
        assert words in card, card
    code = card.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert names["audio"].shape[0] == 1


def test_an_embedding_alone_is_trained_pushed_and_loaded(hub, tmp_path):
    small = "conditioners.music.embedding.{}".format
    changes = [small("fit.steps=1"), small("fit.batch_size=2"), "conditioners.music.fit.steps=1"]
    system = train(load_recipe("mulan-tiny", changes), tmp_path / "run")
    push(tmp_path / "run", "alice/mulan")
    texts = ["a slow chorale for flute", "a fast chorale for choir"]
    loaded, trained = partita.load("alice/mulan"), system.conditioners["music"]
    assert torch.equal(loaded.conditioners["music"].embedding.embed_text(texts), trained.embedding.embed_text(texts))
    repository = hub.repositories["alice/mulan"]
    card = repository.commits[repository.refs["main"]].files["README.md"].decode()
    assert 'conditioner = system.conditioners["music"]' in card
    assert "pipeline_tag: feature-extraction" in card
    assert "codec" not in card
    assert "generate" not in card.split("## How it works")[0]


def test_the_card_asks_for_what_has_a_caption(trained):
    """Pieces without captions give no prompt to repeat, and their clips say so."""
    system = partita.load(trained)
    card = model_card(system, "alice/toy", captions={1: "", 2: "a low tone"})
    assert 'system.generate(["a low tone"]' in card
    assert 'alice/toy "a low tone" -o' in card
    assert "**no prompt** · [listen](samples/1.flac)" in card
    assert 'system.generate(["a slow piece' in model_card(system, "alice/toy", captions={1: ""})


def test_older_versions_stay_and_what_is_gone_is_gone(hub, trained, tmp_path):
    push(trained, "alice/toy", examples=2, commit=Commit(tag="v1"))
    first = hub.repositories["alice/toy"].refs["main"]
    push(changed(trained, tmp_path / "later"), "alice/toy", examples=0)
    push(trained, "alice/toy", examples=0, commit=Commit(branch="old"))
    files = hub.repositories["alice/toy"].commits[hub.repositories["alice/toy"].refs["main"]].files
    assert not [name for name in files if name.startswith("samples/")]
    old, new = clip(partita.load(trained)), clip(partita.load(tmp_path / "later"))
    assert not torch.equal(old, new)
    for revision, expected in ((None, new), ("main", new), ("v1", old), (first, old), ("old", old)):
        assert torch.equal(clip(partita.load("alice/toy", revision=revision)), expected), revision


@pytest.mark.parametrize("step", ["upload", "commit"])
def test_an_interrupted_push_changes_nothing_and_can_be_repeated(hub, cli, trained, tmp_path, step):
    push(trained, "alice/toy", examples=0)
    before = hub.repositories["alice/toy"].refs["main"]
    later = changed(trained, tmp_path / "later")
    hub.failing = {step}
    status, text = cli("push", later, "alice/toy", "--examples", "0")
    assert (status, "Traceback" in text) == (2, False), text
    assert ("expired" if step == "upload" else "try again later") in text
    assert hub.repositories["alice/toy"].refs["main"] == before
    assert torch.equal(clip(partita.load("alice/toy")), clip(partita.load(trained)))
    hub.failing = set()
    assert cli("push", later, "alice/toy", "--examples", "0")[0] == 0
    assert torch.equal(clip(partita.load("alice/toy")), clip(partita.load(later)))


def test_a_first_push_that_is_interrupted_leaves_no_model(hub, trained):
    hub.failing = {"commit"}
    with pytest.raises(partita.PartitaError, match="try again"):
        push(trained, "alice/toy", examples=0)
    with pytest.raises(partita.PartitaError, match="nothing for Partita"):
        partita.load("alice/toy")


@pytest.mark.parametrize(
    ("arguments", "token", "words"),
    [
        (["push", "RUN", "bob/toy"], "hf_alice", "a name of your own"),
        (["push", "RUN", "alice/toy"], "hf_wrong", "does not accept your token"),
        (["push", "RUN", "alice/toy"], None, "hf auth login"),
        (["push", "RUN", "a/b/c"], "hf_alice", "is not a hub id"),
        (["push", "RUN/logs", "alice/toy"], "hf_alice", "holds no system"),
        (["push", "RUN", "alice/there", "--revision-tag", "v1"], "hf_alice", "already has a tag 'v1'"),
        (["push", "RUN", "alice/new", "--license", "gpl3"], "hf_alice", '"license" must be one of [apache-2.0'),
        (["push", "RUN", "alice/new", "--revision-tag", "first try"], "hf_alice", "letters, digits"),
        (["push", "RUN", "alice/new", "--branch", "../main"], "hf_alice", "letters, digits"),
        (["pull", "alice/nowhere"], "hf_alice", "no alice/nowhere on the hub"),
        (["pull", "alice/nowhere"], None, "no alice/nowhere on the hub"),
        (["pull", "alice/there", "--revision", "v9"], "hf_alice", "no revision 'v9'"),
        (["pull", "alice/secret"], "hf_bob", "no alice/secret on the hub, or it is private"),
        (["pull", "alice/secret"], None, "no alice/secret on the hub, or it is private"),
        (["pull", "bob/gated"], "hf_alice", "accept its terms"),
        (["generate", "alice/nowhere", "tone"], "hf_alice", "no alice/nowhere on the hub"),
        (["generate", "runs/mine", "tone"], "hf_alice", "there is no such folder here either"),
    ],
)
def test_what_the_hub_refuses_is_one_message(hub, cli, trained, tmp_path, monkeypatch, arguments, token, words):
    files = {name: (trained / name).read_bytes() for name in EXPECTED - {"README.md"}}
    hub.put("alice/there", files)
    hub.repositories["alice/there"].tags["v1"] = hub.repositories["alice/there"].refs["main"]
    hub.put("alice/secret", files, private=True)
    hub.put("bob/gated", files, gated=True)
    hub.put("bob/toy", files)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    monkeypatch.chdir(tmp_path)
    before = {name: dict(repository.refs) for name, repository in hub.repositories.items()}
    status, text = cli(*[str(a).replace("RUN", str(trained)) for a in arguments])
    assert (status, words in text, "Traceback" in text) == (2, True, False), text
    assert before == {name: repository.refs for name, repository in hub.repositories.items()}
    assert not list(tmp_path.glob("[!.c]*"))


def test_private_and_gated_repositories_open_to_their_owner(hub, trained, monkeypatch):
    push(trained, "alice/secret", examples=0, commit=Commit(private=True))
    assert hub.repositories["alice/secret"].private
    assert partita.load("alice/secret").stages
    hub.repositories["alice/secret"].gated = True
    assert fetch("alice/secret", ["recipe.yaml"]).is_dir()


@pytest.mark.parametrize("how", ["offline", "refused"])
def test_without_a_network_the_cache_serves_or_one_message_does(hub, cli, trained, monkeypatch, how):
    push(trained, "alice/toy", examples=0)
    expected = clip(partita.load("alice/toy"))
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert torch.equal(clip(partita.load("alice/toy")), expected)
    for arguments in (["generate", "alice/other", "tone"], ["push", trained, "alice/toy"]):
        status, text = cli(*arguments)
        assert (status, "hub cannot be reached" in text, "Traceback" in text) == (2, True, False), text


def test_an_unfinished_run_is_not_pushed(hub, cli, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "stages")
    status, text = cli("push", tmp_path / "run", "alice/toy")
    assert (status, "no weights yet for stages/main" in text) == (2, True), text
    assert not hub.repositories


def test_a_dry_run_is_what_would_be_uploaded(cli, trained, tmp_path):
    status, text = cli("push", trained, "alice/toy", "--dry-run", "-o", tmp_path / "dry", "--report")
    assert status == 0, text
    written = {p.relative_to(tmp_path / "dry").as_posix() for p in (tmp_path / "dry").rglob("*") if p.is_file()}
    assert EXPECTED | {"evaluation.json", "report.html", "samples/3.png"} <= written
    assert not [name for name in written if "log" in name or "ckpt" in name]
    assert all(name in text for name in written)
    assert f"{(tmp_path / 'dry/recipe.yaml').stat().st_size:,}  recipe.yaml" in text
    assert torch.equal(clip(partita.load(tmp_path / "dry")), clip(partita.load(trained)))
    status, text = cli("push", trained, "alice/toy", "--dry-run", "-o", tmp_path / "dry")
    assert (status, "exists already" in text) == (2, True)


def test_pulled_into_a_folder(hub, cli, trained, tmp_path, monkeypatch):
    push(trained, "alice/toy", examples=1)
    monkeypatch.chdir(tmp_path)
    for arguments, folder in ((["alice/toy"], "toy"), (["alice/toy", "-o", "other", "--revision", "main"], "other")):
        status, text = cli("pull", *arguments)
        assert (status, folder in text) == (0, True), text
        assert {"README.md", "samples"} <= {p.name for p in (tmp_path / folder).iterdir()}
        assert not [p for p in (tmp_path / folder).rglob("*") if p.is_symlink()]
        assert torch.equal(clip(partita.load(tmp_path / folder)), clip(partita.load(trained)))
    status, text = cli("pull", "alice/toy")
    assert (status, "exists already" in text) == (2, True)


def test_paths_of_ones_own_machine_are_not_published(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    index = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    index["data"] = {"name": "folder", "path": "/home/somebody/private-music"}
    index["tokenizers"]["acoustic"]["weights"] = "/home/somebody/codec.safetensors"
    index["tokenizers"]["acoustic"]["fit"] = {}
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(index))
    write_out(collect(tmp_path / "run", "alice/toy"), tmp_path / "out")
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        assert b"somebody" not in path.read_bytes(), path
    assert torch.equal(clip(partita.load(tmp_path / "out")), clip(partita.load(trained)))


def test_a_revision_is_asked_only_of_the_hub(trained):
    with pytest.raises(partita.PartitaError, match="not on the hub"):
        partita.load(trained, revision="v1")
