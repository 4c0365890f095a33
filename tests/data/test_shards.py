"""Folders of shards from anyone: damaged, hostile, incomplete, on a full disk, and in object storage."""

import json
import os
import pickle
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
import torch

import partita
from partita.data.base import UnreadableClip
from partita.data.folder import Folder
from partita.data.shards import Shards
from partita.data.token_catalog import CATALOG, PLAN
from partita.recipe.plan import load_recipe
from partita.storage import object_store
from partita.storage.packed import pack, unpack
from partita.storage.shard_folder import INDEX, read_job, write_index, write_job
from partita.system.system import System


@pytest.fixture
def base(toy_recipe, tmp_path):
    codec = tmp_path / "codec"
    System(load_recipe(toy_recipe)).tokenizers["acoustic"].save(codec)
    return load_recipe(toy_recipe, [f"tokenizers.acoustic={{weights: {codec}, fit: null}}"])


@pytest.fixture
def folder(base, tmp_path):
    partita.tokenize(base, tmp_path / "shards", progress=False)
    return tmp_path / "shards"


@contextmanager
def suppress_if(kind, words):
    """Suppress an error that contains the words. Any other error is raised."""
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise


def read(path, index=0):
    source = Shards(str(path))
    source.setup()
    return source.read("train", index, seed=0, seconds=0.5, sample_rate=4000, channels=1)


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_packing_keeps_every_type_and_notices_every_change():
    tensors = {"a": torch.arange(6, dtype=torch.uint8).view(2, 3), "b": torch.randn(2, 0), "c": torch.tensor([True])}
    values = {"text": "Ärger\n", "numbers": [1, 2.5], "none": None, "nested": {"x": [[0, 1, "C:maj"]]}}
    data = pack(tensors, values)
    found, told = unpack(memoryview(data))
    assert told == values
    assert all(torch.equal(found[k], tensors[k]) and found[k].dtype == tensors[k].dtype for k in tensors)
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        with suppress_if(partita.PartitaError, "damaged"):
            found, told = unpack(bytes(broken))
            assert told == values  # after a change of what has no meaning, such as the padding of the header
            assert all(torch.equal(found[k], tensors[k]) for k in tensors)
    for length in range(0, len(data), 7):
        with pytest.raises(partita.PartitaError, match="damaged"):
            unpack(data[:length])
    assert unpack(pack({}, {"damaged": "x"})) == ({}, {"damaged": "x"})


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["BOMB"])),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i["config"].update(data_format=["pickle"]), "data_format .* is not what"),
        (lambda i: i["config"].update(data_spec="[1, {}]"), "data_spec"),
        (lambda i: i["config"].update(compression="zstd"), "compression"),
        (lambda i: i["config"].update(item_loader="TokensLoader"), "item_loader"),
        (lambda i: i["config"].update(encryption={"algorithm": "fernet"}), "encryption"),
        (lambda i: i["chunks"][0].update(filename="../../../etc/passwd"), "names a shard that"),
        (lambda i: i["chunks"][0].update(filename="/etc/passwd"), "names a shard that"),
        (lambda i: i["chunks"][0].update(chunk_size=10**18), "names a shard that"),
        (lambda i: i["chunks"][0].update(chunk_size=-1), "names a shard that"),
        (lambda i: i["chunks"][0].update(chunk_bytes=10**18), "instead of 1,000,000,000,000,000,000"),
        (lambda i: i["chunks"].append(i["chunks"][0]), "names a shard that"),
        (lambda i: i["chunks"][0].update(chunk_size=3), "lists 3 examples instead of"),
        (lambda i: i.update(chunks=[]), "is damaged"),
        (lambda i: i.update(chunks=[7]), "names a shard that"),
        (lambda i: i.update(config=None), "is damaged"),
    ],
)
def test_a_hostile_index_is_refused_before_litdata_reads_it(folder, tmp_path, monkeypatch, change, words):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    (folder / "train" / "bomb").write_bytes(pickle.dumps(Bomb()))
    edit(folder / "train" / INDEX, change)
    with pytest.raises(partita.PartitaError, match=words):
        read(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=99), "has the format 99 instead of 1: another version"),
        (lambda c: c.pop("format"), "has the format None"),
        (lambda c: c.pop("step"), "is damaged"),
        (lambda c: c.update(step="1/0"), "is damaged"),
        (lambda c: c.update(step="-1"), "is damaged"),
        (lambda c: c.update(hop=float("nan")), "is damaged"),
        (lambda c: c.update(hop="x"), "is damaged"),
        (lambda c: c.update(versions={"train": 10**12, "validation": 1, "test": 1}), "is damaged"),
        (lambda c: c["members"][0]["splits"].update(train=10**15), "is damaged"),
        (lambda c: c["members"].clear(), "is damaged"),
        (lambda c: c["counts"]["train"].append(1), "is damaged"),
        (lambda c: c["counts"].update(train=[10**15] * len(c["counts"]["train"])), "instead of"),
        (lambda c: c.update(counts={}), "is incomplete"),
        (lambda c: c.update(representations={"x": -1}), "is damaged"),
        (lambda c: c.update(representations=[]), "is damaged"),
        (lambda c: c.update(parts={"a": 3}), "is damaged"),
        (lambda c: c.update(origins=["x"]), "is damaged"),
    ],
)
def test_a_hostile_catalog_is_refused(folder, change, words):
    edit(folder / CATALOG, change)
    with pytest.raises(partita.PartitaError, match=words):
        read(folder)


def test_what_is_no_folder_of_shards_is_said(folder, tmp_path):
    def refused(words, path):
        with pytest.raises(partita.PartitaError, match=words) as error:
            Shards(str(path)).setup()
        assert "\n" not in str(error.value)
        assert [wrong for _, wrong in Shards(str(path)).missing()] == [str(error.value)]

    refused("does not exist", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused("holds no shards", tmp_path / "empty")
    refused("is a file", folder / CATALOG)
    (folder / CATALOG).rename(folder / PLAN)
    refused("is incomplete: run the same `partita tokenize` command again", folder)
    with pytest.raises(ValueError, match="path is empty"):
        Shards("")


def test_links_that_lead_out_of_the_folder_are_refused(folder, tmp_path):
    shard = next(folder.glob("train/shard*"))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(partita.PartitaError, match="leads out of its folder"):
        read(folder)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(partita.PartitaError, match="not a regular file"):
        read(folder)


def test_a_damaged_shard_is_named_and_written_again(base, folder):
    shard = next(folder.glob("train/shard*"))
    content = shard.read_bytes()
    source = Shards(str(folder))
    source.setup()
    wanted = [read(folder, index).representations for index in range(8)]
    for place in range(0, len(content), 97):
        broken = bytearray(content)
        broken[place] ^= 0xFF
        shard.write_bytes(broken)
        for index in range(8):
            with suppress_if(partita.PartitaError, "run `partita tokenize` again"):
                found = read(folder, index).representations
                assert all(torch.equal(found[k], wanted[index][k]) for k in found)
    source = Shards(str(folder))
    source.setup()
    assert any(wrong for _, wrong in source.verify())
    partita.tokenize(base, folder, progress=False)
    assert shard.read_bytes() == content
    shard.write_bytes(content[:-1])
    with pytest.raises(partita.PartitaError, match=r"shard-.* is damaged: it has .* bytes instead of"):
        read(folder)
    shard.unlink()
    with pytest.raises(partita.PartitaError, match=r"cannot be read: .*run `partita tokenize` again"):
        read(folder)
    partita.tokenize(base, folder, progress=False)
    assert shard.read_bytes() == content
    (folder / "train" / "job-000000.json").write_text("{}")
    partita.tokenize(base, folder, progress=False)
    assert (folder / CATALOG).is_file()
    assert all(
        torch.equal(a, b) for a, b in zip(read(folder).representations.values(), wanted[0].values(), strict=True)
    )


@pytest.mark.parametrize("place", [3, 7, 11, 4 * 9 + 2])
def test_a_damaged_table_of_examples_is_noticed_before_litdata_makes_room_for_billions(folder, place):
    shard = next(folder.glob("train/shard*"))
    content = bytearray(shard.read_bytes())
    content[place] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(partita.PartitaError, match=r"shard-.* is damaged: .*run `partita tokenize` again"):
        Shards(str(folder)).setup()


def test_a_full_disk_ends_with_one_message_and_the_work_goes_on_later(base, tmp_path):
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(partita.PartitaError, match="cannot be written") as error:
            partita.tokenize(base, tmp_path / "shards", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "shards" / CATALOG).exists()
    partita.tokenize(base, tmp_path / "shards", progress=False)
    assert read(tmp_path / "shards").num_samples == 2000


def test_pieces_that_cannot_be_read_are_skipped_as_on_the_fly(base, tmp_path):
    from partita.storage.audio_file import write_audio

    music = tmp_path / "music"
    music.mkdir()
    for number in range(6):
        write_audio(music / f"{number}.wav", torch.full((1, 6000), 0.1 * number).numpy(), 4000)
        (music / f"{number}.txt").write_text("flat")
    plan = load_recipe(base.values, [f"data={{name: folder, path: {music}, validation: 0.0, test: 0.0}}"])
    read_folder = Folder.read

    def damaged(self, split, index, **how):
        if index in (1, 4):
            raise UnreadableClip(f"{index}.wav", "it is damaged")
        return read_folder(self, split, index, **how)

    Folder.read = damaged
    try:
        partita.tokenize(plan, tmp_path / "shards", progress=False)
        from partita.data.examples import Examples

        folder, shards = System(plan).source, Shards(str(tmp_path / "shards"))
        found = []
        for source in (folder, shards):
            source.setup()
            examples = Examples(source, "train", length=18, seconds=0.5, sample_rate=4000, channels=1, seed=2)
            found.append([(examples[i].fields["id"], examples[i].seed, examples[i].damaged) for i in range(18)])
    finally:
        Folder.read = read_folder
    assert found[0] == found[1]
    assert shards.report == ["1.wav: it is damaged", "4.wav: it is damaged"]


def test_interrupts_of_a_terminal_are_left_to_the_main_process(base, tmp_path, monkeypatch):
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "a.wav", torch.zeros(4000).numpy(), 4000)
    plan = load_recipe(base.values, [f"data={{name: folder, path: {tmp_path / 'music'}, validation: 0.0, test: 0.0}}"])
    read_folder, main = Folder.read, os.getpid()

    def interrupted(self, *arguments, **how):
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGINT)
        return read_folder(self, *arguments, **how)

    monkeypatch.setattr(Folder, "read", interrupted)
    partita.tokenize(plan, tmp_path / "shards", workers=1, progress=False)
    assert (tmp_path / "shards" / CATALOG).is_file()


class Bucket:
    """What litdata's clients of object storage do, in a folder."""

    def __init__(self, root):
        self.root = root
        self.uploads = []

    def path(self, url):
        assert url.startswith("s3://bucket/music/tokens/")
        return self.root / url.removeprefix("s3://bucket/")

    def exists(self, url):
        return self.path(url).is_file()

    def upload_file(self, local, url):
        self.uploads.append(url)
        self.path(url).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local, self.path(url))

    def download_file(self, url, local):
        shutil.copyfile(self.path(url), local)

    def delete_file_or_directory(self, url):
        self.path(url).unlink()


def test_object_storage_is_written_by_litdatas_client_and_read_by_its_downloader(base, folder, tmp_path, monkeypatch):
    from litdata.streaming import fs_provider

    bucket = Bucket(tmp_path / "bucket")
    monkeypatch.setattr(fs_provider, "_get_fs_provider", lambda url: bucket)
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "cache"))
    url = "s3://bucket/music/tokens"
    for node in (1, 0):
        partita.tokenize(base, url, node=(node, 2), progress=False)
    remote = tmp_path / "bucket" / "music" / "tokens"
    here = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if not p.name.startswith(".")}
    there = {str(p.relative_to(remote)): p.read_bytes() for p in remote.rglob("*.*")}
    assert here == there
    assert bucket.uploads.index(f"{url}/train/shard-000000-0.bin") < bucket.uploads.index(
        f"{url}/train/job-000000.json"
    )
    uploads = len(bucket.uploads)
    partita.tokenize(base, url, progress=False)
    assert len(bucket.uploads) == uploads
    # litdata's downloader of other folders stands for those of object storage, which need a network
    source = Shards(f"local:{remote}")
    assert source.missing() == []
    source.setup()
    for index in range(8):
        ours = source.read("train", index, seed=3, seconds=0.5, sample_rate=4000, channels=1)
        local = Shards(str(folder))
        local.setup()
        theirs = local.read("train", index, seed=3, seconds=0.5, sample_rate=4000, channels=1)
        assert ours.fields == theirs.fields
        assert all(torch.equal(ours.representations[k], v) for k, v in theirs.representations.items())
    edit(remote / "train" / INDEX, lambda i: i["config"].update(data_format=["pickle"]))
    with pytest.raises(partita.PartitaError, match="data_format"):
        Shards(f"local:{remote}").setup()
    shutil.rmtree(remote)
    with pytest.raises(partita.PartitaError, match="cannot be read"):
        Shards(f"local:{remote}").setup()


def test_errors_of_object_storage_are_one_message(base, monkeypatch):
    from litdata.streaming import fs_provider

    class Away:
        def exists(self, url):
            raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(fs_provider, "_get_fs_provider", lambda url: Away())
    with pytest.raises(partita.PartitaError, match=r"^s3://bucket/x cannot be read: no route to host$"):
        partita.tokenize(base, "s3://bucket/x", progress=False)


@pytest.mark.parametrize(
    ("path", "remote"),
    [("s3://a/b", True), ("gs://a/b", True), ("r2://a/b", True), ("local:/a", True), ("/a/b", False), ("s3", False)],
)
def test_which_paths_are_object_storage(path, remote):
    assert object_store.is_remote(path) == remote


def test_without_litdata_the_package_to_install_is_named(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(partita.PartitaError, match=r"pip install 'partita\[shards\]'"):
        Shards(str(folder)).setup()


@pytest.mark.parametrize(
    "fields",
    [{"tempo": "fast"}, {"beats": "x"}, {"chords": 3}, {"chords": [[0, "x", 1]]}, {"melody": [[0]]}],
)
def test_fields_from_a_stranger_are_parsed(base, folder, fields):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    (key,) = json.loads((folder / CATALOG).read_text())["representations"]
    values = {"id": "x", "crop_id": "x", "seconds": 1.0, "fields": fields}
    example = pack({f"representation {key}": torch.zeros(1, 40, dtype=torch.uint8)}, values)
    write_job(folder / "train", 0, [[example]] * 8)
    write_index(folder / "train", [read_job(folder / "train" / "job-000000.json")])
    edit(folder / CATALOG, lambda c: (c["counts"].update(train=[1] * 8), c["versions"].update(train=1)))
    with pytest.raises(partita.PartitaError, match="a field of the shards is invalid"):
        read(folder)
