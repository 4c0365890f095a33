"""Weights that were changed on the way are found out."""

import random
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from partita import PartitaError
from partita.storage.tensor_file import checksum, read_tensors, write_tensors

TENSORS = {
    "b.weight": torch.randn(40, 25, generator=torch.Generator().manual_seed(0)),
    "a.steps": torch.tensor(7),
    "c.half": torch.arange(9).bfloat16(),
    "d.empty": torch.zeros(0, 3),
    "e.flags": torch.tensor([True, False]),
}


def test_tensors_come_back_and_others_can_read_them(tmp_path):
    write_tensors(TENSORS, tmp_path / "x.safetensors")
    for read in (read_tensors, load_file):
        found = read(tmp_path / "x.safetensors")
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_equal_weights_make_equal_files(tmp_path):
    """The chance that they do without being sorted is 1 in 2 for each further file."""
    for number in range(12):
        write_tensors(TENSORS, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_checksum_is_a_crc_of_names_and_bytes():
    content = b"a" + (3).to_bytes(8, "little") + b"b" + b"\x00\x00\x80\x3f"
    assert checksum({"b": torch.ones(1), "a": torch.tensor(3)}) == f"{zlib.crc32(content):08x}"


def test_whatever_bit_is_wrong_is_found_or_changes_nothing(tmp_path):
    path, draw, found = tmp_path / "x.safetensors", random.Random(0), 0
    write_tensors(TENSORS, path)
    whole = path.read_bytes()
    for _ in range(400):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            read = read_tensors(path)
        except PartitaError:
            found += 1
            continue
        assert read.keys() == TENSORS.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert found > 350, found  # the others hit what the metadata say beside


def test_a_wrong_bit_is_a_message_that_names_the_file(tmp_path):
    write_tensors(TENSORS, tmp_path / "x.safetensors")
    whole = bytearray((tmp_path / "x.safetensors").read_bytes())
    whole[-1] ^= 1
    (tmp_path / "x.safetensors").write_bytes(whole)
    with pytest.raises(PartitaError, match=r"x\.safetensors is damaged.*Delete its folder"):
        read_tensors(tmp_path / "x.safetensors")


def test_files_of_others_have_no_checksum(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors").keys() == TENSORS.keys()


def test_a_full_disk_is_no_traceback(tmp_path):
    with pytest.raises(PartitaError, match="cannot be written"):
        write_tensors(TENSORS, tmp_path / "missing" / "x.safetensors")
