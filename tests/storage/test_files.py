import os
import random
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from partita.errors import PartitaError
from partita.storage.audio_file import write_audio
from partita.storage.files import recover, replacing_file, replacing_folder
from partita.training.checkpoints import AtomicCheckpoints


@pytest.fixture
def small_disk():
    """Files may have 64 KiB."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_replacing_keeps_the_old_until_the_new_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(InterruptedError), replacing_file(path) as new:
        new.write_text("half")
        raise InterruptedError
    assert path.read_text() == "old"
    with replacing_folder(tmp_path / "folder") as new:
        (new / "a").write_text("1")
    with replacing_folder(tmp_path / "folder") as new:
        (new / "b").write_text("2")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("folder", [False, True])
def test_contents_reach_the_disk_before_the_name_does(tmp_path, monkeypatch, folder):
    """After a power failure, a name never stands for contents that were only in memory."""
    steps = []
    rename = Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append(os.fstat(file).st_ino))
    monkeypatch.setattr(Path, "replace", lambda old, new: (steps.append("renamed"), rename(old, new))[1])
    with (replacing_folder if folder else replacing_file)(tmp_path / "result") as new:
        inner = new / "inner" if folder else new
        inner.write_text("whole")
        written = [path.stat().st_ino for path in ([inner, new] if folder else [new])]
    assert steps == [*written, "renamed", tmp_path.stat().st_ino]


def test_without_room_the_old_is_kept_and_one_message_says_so(tmp_path, small_disk):
    large = {"large": torch.zeros(1 << 16)}
    checkpoint, file, folder = tmp_path / "a.ckpt", tmp_path / "text", tmp_path / "folder"
    AtomicCheckpoints().save_checkpoint({"small": torch.ones(3)}, checkpoint)
    file.write_text("old")
    with replacing_folder(folder) as new:
        (new / "old").touch()
    with pytest.raises(PartitaError, match=r"a\.ckpt cannot be written: .*larger than is allowed.*free some space"):
        AtomicCheckpoints().save_checkpoint(large, checkpoint)
    with pytest.raises(PartitaError, match="text cannot be written"), replacing_file(file) as new:
        new.write_text("x" * (1 << 17))
    with pytest.raises(PartitaError, match="folder cannot be written"), replacing_folder(folder) as new:
        save_file(large, new / "model.safetensors")
    assert AtomicCheckpoints().load_checkpoint(checkpoint)["small"].tolist() == [1, 1, 1]
    assert file.read_text() == "old"
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "a.ckpt",
        "folder",
        "folder/old",
        "text",
    ]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_audio_whose_end_finds_no_room_is_no_success(tmp_path, small_disk, suffix):
    """On its own, libsndfile returns as if nothing had happened when the last bytes of a FLAC, Ogg or MP3 are lost."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 24000)).astype(np.float32)
    path = tmp_path / f"clip{suffix}"
    write_audio(path, noise, 48000)
    before = path.read_bytes()
    for lost in (1, len(before) // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - lost, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(PartitaError, match=rf"clip{suffix} cannot be written: .*larger than is allowed"):
            write_audio(path, noise, 48000)
        assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_told_by_its_number(tmp_path):
    with (
        pytest.raises(PartitaError, match="the disk is full"),
        replacing_file(tmp_path / "file"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x")
    with pytest.raises(PermissionError), replacing_file(tmp_path / "file"):
        raise PermissionError(13, "not yours")


def test_what_a_killed_process_left_is_tidied_up(tmp_path):
    gone = int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)
    for name in ("kept", f".kept.{gone}.old", f".lost.{gone}.old", f".half.{gone}.part", f".busy.{os.getppid()}.part"):
        (tmp_path / "parts" / name).mkdir(parents=True)
        (tmp_path / "parts" / name / "content").write_text(name)
    (tmp_path / f".file.{gone}.part").write_text("half")
    (tmp_path / ".hidden").touch()
    recover(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"parts", ".hidden"}
    left = {p.name: (p / "content").read_text() for p in (tmp_path / "parts").iterdir()}
    busy = f".busy.{os.getppid()}.part"
    assert left == {"kept": "kept", "lost": f".lost.{gone}.old", busy: busy}


def _load(path):
    try:
        return "", AtomicCheckpoints().load_checkpoint(path)
    except PartitaError as error:
        return str(error), None


def test_damaged_checkpoints_are_named_and_never_believed(tmp_path):
    """Whatever bit is wrong: it is found, or changes nothing."""
    path, draw = tmp_path / "part.ckpt", random.Random(0)
    values = {"weights": torch.randn(5000, generator=torch.Generator().manual_seed(0)), "step": 7, "name": "x"}
    AtomicCheckpoints().save_checkpoint(values, path)
    whole, found = path.read_bytes(), 0
    for damage in [b"", whole[:-1], whole[: len(whole) // 2], b"\0" * len(whole), *range(300)]:
        if isinstance(damage, int):
            flipped = bytearray(whole)
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            damage = bytes(flipped)
        path.write_bytes(damage)
        said, loaded = _load(path)
        if loaded is None:
            found += 1
            assert f"{path} is damaged" in said
            assert "delete it and run the same command again" in said
            continue
        assert torch.equal(loaded["weights"], values["weights"])
        assert (loaded["step"], loaded["name"]) == (7, "x")
    assert found > 280, found  # the others hit padding
