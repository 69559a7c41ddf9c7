"""Damage is found, absurd sizes are refused before they cost anything, and other programs read what we write.

A longer run: ``FLIPS=400 python -m pytest tests/checkpoints/test_integrity.py -k flips``.
"""

import hashlib
import io
import json
import os
import random
import re
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import same

from flashkat import checkpoints
from flashkat.errors import InputError

FLIPS = int(os.environ.get("FLIPS", 30))


def content():
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(8, 5, generator=generator) for name in ("model.a", "model.b")}
    return {"arch": "net", "epoch": 3, "state_dict": state, "run": {"history": [{"epoch": 0, "lr": 0.1}]}}


def written(path):
    if path.name.endswith(".pth.tar"):
        checkpoints.write(path, content())
    else:
        checkpoints.write_weights(path, content()["state_dict"])
    return path


@pytest.mark.parametrize("name", ["a.pth.tar", "a.pth", "a.safetensors"])
def test_single_bit_flips_are_found_or_harmless(tmp_path, name):
    path = written(tmp_path / name)
    whole, expected, numbers = path.read_bytes(), checkpoints.read(path), random.Random(0)
    for _ in range(FLIPS):
        bit = numbers.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = checkpoints.read(path)
        except InputError as error:
            words = str(error)
        else:
            words = "damaged"
            assert same(checkpoints.weights(found), checkpoints.weights(expected)), bit
            assert found.get("run") == expected.get("run"), bit
        assert re.search("damaged|claims to hold", words)


def exchanged(path, one, other):
    """The file with the names of two records exchanged, in the directory and before the records."""
    data = path.read_bytes()
    aside = b"\x7f" * len(one)
    return data.replace(one, aside).replace(other, one).replace(aside, other)


def test_records_that_change_places_are_found(tmp_path):
    path = written(tmp_path / "a.pth.tar")
    path.write_bytes(exchanged(path, b"data/0", b"data/1"))
    assert not same(torch.load(path, weights_only=True)["state_dict"], content()["state_dict"])
    with pytest.raises(InputError, match="damaged"):
        checkpoints.read(path)


def test_tensors_that_change_places_are_found(tmp_path):
    path = written(tmp_path / "a.safetensors")
    path.write_bytes(exchanged(path, b'"model.a"', b'"model.b"'))
    with pytest.raises(InputError, match="damaged"):
        checkpoints.read(path)


@pytest.mark.parametrize("name", ["a.pth.tar", "a.pth"])
@pytest.mark.parametrize("mmap", [False, True])
def test_other_programs_read_sealed_files(tmp_path, name, mmap):
    found = torch.load(written(tmp_path / name), weights_only=True, mmap=mmap)
    assert same(found.get("state_dict", found), content()["state_dict"])


def test_other_programs_read_safetensors(tmp_path):
    assert same(load_file(written(tmp_path / "a.safetensors")), content()["state_dict"])


def test_files_without_checksums_are_read(tmp_path):
    path = tmp_path / "a.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip()
    assert same(checkpoints.read(path)["state_dict"], content()["state_dict"])


# --- absurd sizes -----------------------------------------------------------------------------------------------------


def refused(path, words):
    start = time.monotonic()
    with pytest.raises(InputError, match=words):
        checkpoints.read(path)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_zip_bombs_are_refused_from_their_directory(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**27)
    data = path.read_bytes()
    # The directory says 2 GiB.
    path.write_bytes(data.replace((2**27).to_bytes(4, "little"), (2**31).to_bytes(4, "little")))
    refused(path, "claims to hold 2,147,483,648: no checkpoint does")


def test_many_names_for_the_same_bytes_are_refused(tmp_path):
    """Each entry of the directory is honest alone."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
        archive.filelist *= 1000
    refused(path, "claims to hold 1,048,576,000")


def test_a_million_entries_are_refused(tmp_path):
    """Reading each of them in Python would take many seconds."""
    torch.save({"optimizer": {"state": dict.fromkeys(range(10**6), 1.0)}}, tmp_path / "a.pth.tar")
    refused(tmp_path / "a.pth.tar", "bytes of names and structure")


def test_a_million_entries_of_an_older_file_are_refused(tmp_path):
    state = {str(number): number for number in range(10**6)}
    torch.save({"state": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="bytes of names and structure"):
        checkpoints.read(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_a_directory_of_a_million_records_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.filelist *= 10**5
    refused(path, "bytes of names and structure")


def test_a_long_header_of_safetensors_is_refused(tmp_path):
    header = json.dumps({str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(10**5)}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(tmp_path / "a.safetensors", "bytes of names and structure")


def test_many_names_are_honest_in_a_large_file(tmp_path, monkeypatch):
    """Such as the names of many classes, beside the weights of as many outputs."""
    monkeypatch.setattr("flashkat.checkpoints.integrity._FREE_NAMES", 2**10)
    classes = [f"n{number:08}" for number in range(1000)]
    torch.save({"state_dict": {"weight": torch.ones(1)}, "classes": classes}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "bytes of names and structure")
    torch.save({"state_dict": {"weight": torch.ones(1000, 400)}, "classes": classes}, tmp_path / "a.pth")
    assert checkpoints.read(tmp_path / "a.pth")["classes"] == classes


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**13), torch.zeros(1).expand(10**6, 10**6)],
)
def test_views_of_few_numbers_as_many_are_refused(tmp_path, tensor):
    torch.save({"pos_embed": tensor}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "claims to hold")


def test_tensors_without_numbers_are_refused(tmp_path):
    torch.save({"weight": torch.empty(10**13, device="meta")}, tmp_path / "meta.pth")
    torch.save({"weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    for name in ("meta", "sparse"):
        refused(tmp_path / f"{name}.pth", "holds a tensor that is no plain array of numbers: weight")


def test_a_storage_that_claims_more_than_its_record(tmp_path):
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(400)}, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "a.pth", "w") as changed:
        for name in archive.namelist():
            data = archive.read(name)
            changed.writestr(name, data.replace(b"M\x90\x01", b"\x8a\x08" + (10**15).to_bytes(8, "little"), 1))
    refused(tmp_path / "a.pth", "damaged")


def test_lists_that_no_one_could_walk(tmp_path):
    """Millions of names for one list, a list in itself, and a number of more than 64 bits."""
    many = [1]
    for _ in range(25):
        many = [many, many]
    endless: list = []
    endless.append(endless)
    for value, words in ((many, "more than 4,1"), (endless, "in themselves"), (2**100, "a number of 101 bits")):
        torch.save({"state_dict": {"a": torch.ones(2)}, "args": {"opt": value}}, tmp_path / "a.pth")
        refused(tmp_path / "a.pth", words)


def test_a_list_that_is_named_twice(tmp_path):
    betas = [0.9, 0.999]
    torch.save({"state_dict": {"a": torch.ones(2)}, "more": [betas, betas]}, tmp_path / "a.pth")
    assert checkpoints.read(tmp_path / "a.pth")["more"] == [betas, betas]


# --- NumPy's numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(-7), np.uint8(7), np.bool_(True)]
)
def test_numpys_numbers_are_read_as_pythons(tmp_path, value):
    torch.save({"state_dict": {"a": torch.ones(2)}, "metric": value}, tmp_path / "a.pth")
    found = checkpoints.read(tmp_path / "a.pth")["metric"]
    assert found == value
    assert type(found) is type(value.item())


def test_dtypes_are_read_as_their_names(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "dtype": np.dtype("float32")}, tmp_path / "a.pth")
    assert checkpoints.read(tmp_path / "a.pth")["dtype"] == "f4"


@pytest.mark.parametrize("dtype", ["O", "V8", "M8[s]", "U4"])
def test_other_dtypes_are_refused(tmp_path, dtype):
    torch.save({"state_dict": {"a": torch.ones(2)}, "dtype": np.dtype(dtype)}, tmp_path / "a.pth")
    with pytest.raises(InputError):
        checkpoints.read(tmp_path / "a.pth")


def test_a_name_that_ends_in_a_hash_is_checked_against_the_file(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    right = tmp_path / f"kat-finetune_{hashlib.sha256(content).hexdigest()}.pth"
    right.write_bytes(content)
    assert checkpoints.read(right)["a"].tolist() == [1, 1]
    torch.save({"a": torch.zeros(2)}, right)
    with pytest.raises(InputError, match=r"not the file that its name says.*download it again"):
        checkpoints.read(right)
