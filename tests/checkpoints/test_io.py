import argparse
import io
import pickle
from pathlib import Path

import pytest
import torch
from foreign import MakesFile
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import checkpoint, same
from torch import nn

from flashkat import checkpoints
from flashkat.errors import InputError


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


WHOLE = saved(checkpoint())


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "last.pth.tar"
    checkpoints.write(path, checkpoint())
    found, expected = checkpoints.read(path), checkpoint()
    assert same(found.pop("state_dict"), expected.pop("state_dict"))
    assert found == expected
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth.tar"]
    # And by others.
    assert torch.load(path, weights_only=True)["epoch"] == 3


def test_writing_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "last.pth.tar"
    checkpoints.write(path, checkpoint())
    before = path.read_bytes()

    def power_cut(checkpoint, file):
        file.write(WHOLE[: len(WHOLE) // 2])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", power_cut)
        with pytest.raises(OSError, match="no space"):
            checkpoints.write(path, {"epoch": 4})
    assert path.read_bytes() == before
    checkpoints.write(path, {"epoch": 5})
    assert checkpoints.read(path) == {"epoch": 5}


def test_the_reason_for_what_cannot_be_written_is_the_systems(tmp_path, monkeypatch):
    """PyTorch's writer does not say it."""
    with pytest.raises(FileNotFoundError):
        checkpoints.write(tmp_path / "gone" / "last.pth.tar", checkpoint())

    def fail(checkpoint, path):
        raise RuntimeError("of unknown cause")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="of unknown cause"):
        checkpoints.write(tmp_path / "last.pth.tar", checkpoint())


@pytest.mark.parametrize("most", [0, 1000, 100_000, 400_000])
def test_a_full_disk_is_named_wherever_it_fills(tmp_path, most):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"a": torch.ones(50_000), "b": torch.ones(50_001)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.write(tmp_path / "last.pth.tar", {"state_dict": state})
        with pytest.raises(InputError, match=r"cannot write .*: File too large"):
            checkpoints.write_weights(tmp_path / "weights.pth", state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_to_once(tmp_path, monkeypatch):
    """A file that was there and is written anew holds up training as ext4 closes it."""
    found, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: (found.append(file), save(content, file)))
    checkpoints.write(tmp_path / "last.pth.tar", checkpoint())
    assert not isinstance(found[0], (str, Path))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_path_may_be_text(tmp_path):
    (tmp_path / "a.pth").write_bytes(WHOLE)
    assert checkpoints.read(str(tmp_path / "a.pth"))["epoch"] == 3


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors"])
def test_missing(tmp_path, name):
    with pytest.raises(InputError, match="no checkpoint at"):
        checkpoints.read(tmp_path / name)


def test_folder(tmp_path):
    with pytest.raises(InputError, match=r"is a folder: name a checkpoint$"):
        checkpoints.read(tmp_path)
    (tmp_path / "last.pth.tar").write_bytes(WHOLE)
    with pytest.raises(InputError, match=r"is a folder: name a checkpoint in it, such as .*last\.pth\.tar$"):
        checkpoints.read(tmp_path)


def test_arguments_in_a_namespace_become_a_dictionary(tmp_path):
    path = tmp_path / "timm.pth.tar"
    args = argparse.Namespace(model_kwargs={"m": 5}, lr=0.1, mean=(0.5, 0.5, 0.5))
    torch.save({**checkpoint(), "args": args}, path)
    assert checkpoints.read(path)["args"] == {"model_kwargs": {"m": 5}, "lr": 0.1, "mean": (0.5, 0.5, 0.5)}


def test_reading_leaves_torchs_safe_globals_alone(tmp_path):
    (tmp_path / "a.pth").write_bytes(WHOLE)
    before = set(torch.serialization.get_safe_globals())
    checkpoints.read(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_legacy_files(tmp_path):
    (tmp_path / "old.pth").write_bytes(saved(checkpoint(), _use_new_zipfile_serialization=False))
    assert same(checkpoints.read(tmp_path / "old.pth")["state_dict"], checkpoint()["state_dict"])


def test_safetensors(tmp_path):
    save_file(checkpoint()["state_dict"], tmp_path / "a.safetensors")
    found = checkpoints.read(tmp_path / "a.safetensors")
    assert same(found["state_dict"], checkpoint()["state_dict"])


def test_what_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.pth").write_bytes(WHOLE)
    monkeypatch.setattr(Path, "open", refuse)  # modes do not stop whoever is root
    with pytest.raises(InputError, match=r"cannot read .*a\.pth: Permission denied$"):
        checkpoints.read(tmp_path / "a.pth")


@given(st.integers(0, len(WHOLE) - 1))
@example(0)
@example(1)
@example(len(WHOLE) - 1)
def test_truncated(tmp_path, length):
    (tmp_path / "cut.pth").write_bytes(WHOLE[:length])
    with pytest.raises(InputError, match=r"cut\.pth is (truncated or damaged|not a checkpoint)"):
        checkpoints.read(tmp_path / "cut.pth")


@given(st.data())
def test_truncated_safetensors(tmp_path, data):
    save_file(checkpoint()["state_dict"], tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError, match="truncated or damaged"):
        checkpoints.read(tmp_path / "cut.safetensors")


def test_truncated_legacy_file(tmp_path):
    whole = saved(checkpoint(), _use_new_zipfile_serialization=False)
    for length in range(len(whole)):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(InputError):
            checkpoints.read(tmp_path / "cut.pth")


@given(st.binary(max_size=40))
@example(b".")
@example(b"G")
@example(b"e")
def test_any_bytes(tmp_path, data):
    (tmp_path / "any.pth").write_bytes(data)
    with pytest.raises(InputError):
        checkpoints.read(tmp_path / "any.pth")


@pytest.mark.parametrize("text", ["", "hello\n", "# Notes\n", "{}", '{"state_dict": {}}', "\0" * 100])
def test_text(tmp_path, text):
    (tmp_path / "text.pth").write_text(text)
    with pytest.raises(InputError, match=r"text\.pth"):
        checkpoints.read(tmp_path / "text.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors", ".pkl"])
@pytest.mark.parametrize("form", ["zip", "legacy", 0, 1, 2, 3, 4, 5])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_code_is_run(tmp_path, form, suffix):
    made, path = tmp_path / "made", tmp_path / f"evil{suffix}"
    evil = {"state_dict": {"weight": MakesFile(made)}}
    path.write_bytes(
        pickle.dumps(evil, protocol=form)
        if isinstance(form, int)
        else saved(evil, _use_new_zipfile_serialization=form == "zip")
    )
    with pytest.raises(InputError, match=r"evil"):
        checkpoints.read(path)
    assert not made.exists()
    # Whereas loading it as most programs do runs the code.
    pickle.loads(pickle.dumps(evil))
    assert made.exists()


@pytest.mark.parametrize("value", [nn.Linear(2, 2), {"state_dict": {}, "model": nn.Linear(2, 2)}, {"path": Path("a")}])
def test_objects_that_need_code_are_called_that(tmp_path, value):
    torch.save(value, tmp_path / "module.pth")
    with pytest.raises(InputError, match="would need to run code to load, so it was not: save its state_dict alone"):
        checkpoints.read(tmp_path / "module.pth")


@pytest.mark.parametrize("value", [[1, 2], 3, "text", torch.ones(3), None])
def test_no_dictionary(tmp_path, value):
    torch.save(value, tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds no state_dict: give a file with the weights"):
        checkpoints.read(tmp_path / "list.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors", ".npz"])
def test_a_pointer_or_a_page_in_the_place_of_a_checkpoint(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(InputError, match=rf"a{suffix} is a pointer of Git LFS, .*: git lfs pull fetches that"):
        checkpoints.read(path)
    path.write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(InputError, match=rf"a{suffix} is a web page, not the file itself"):
        checkpoints.read(path)
