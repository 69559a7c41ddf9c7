"""A replaced file is the old one or the new one, never a part."""

import os
import threading
from pathlib import Path

import pytest

from flashkat.errors import InputError
from flashkat.system.files import check_writable, identity, new_folder, placeholder, replaced


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    with replaced(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_after_a_failure_the_old_file_is_there(tmp_path, error):
    path = tmp_path / "file.json"
    path.write_text("old")

    def fail():
        with replaced(path) as partial:
            partial.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_file_is_flushed_through_a_descriptor_that_may_write(tmp_path, monkeypatch):
    """As Windows asks for. A folder is never open to write."""
    opened, open_file = [], os.open

    def noted(path, flags):
        opened.append((path, flags))
        return open_file(path, flags)

    monkeypatch.setattr("flashkat.system.files.os.open", noted)
    with replaced(tmp_path / "file.json") as partial:
        partial.write_text("whole")
    assert opened[-2:] == [(partial, os.O_RDWR), (tmp_path, os.O_RDONLY)]


def test_processes_write_to_names_of_their_own(tmp_path):
    with replaced(tmp_path / "file.json") as partial:
        assert str(os.getpid()) in partial.name
        assert not partial.exists()
        partial.write_text("whole")
    assert names(tmp_path) == ["file.json"]


def test_another_name_of_the_same_file(tmp_path):
    path = tmp_path / "last"
    path.write_text("one")
    (tmp_path / "best").hardlink_to(path)
    with replaced(tmp_path / "best") as partial:
        partial.hardlink_to(path)
    assert names(tmp_path) == ["best", "last"]


def test_a_pipe_stays_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_text()))
    reader.start()
    with replaced(path) as partial:
        partial.write_text("new")
    reader.join()
    assert received == ["new"]
    assert path.is_fifo()


@pytest.mark.parametrize("through_descriptor", [False, True])
def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path, through_descriptor):
    (tmp_path / "there").mkdir()
    path, link = tmp_path / "there" / "file", tmp_path / "link"
    with path.open("w") as file:
        link.symlink_to(f"/proc/self/fd/{file.fileno()}" if through_descriptor else path)
        with replaced(link) as partial:
            partial.write_text("new")
            assert partial.parent == path.parent
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert names(tmp_path) == ["link", "there"]


def test_a_link_to_a_file_without_a_name_is_written_to(tmp_path):
    with (tmp_path / "file").open("w+") as file:
        (tmp_path / "file").unlink()
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{file.fileno()}")
        with replaced(tmp_path / "link") as partial:
            partial.write_text("new")
        assert file.read() == "new"
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link"]


def test_a_run_replaces_links_in_its_folder(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with replaced(tmp_path / "link", keeps_special=False) as partial:
        partial.write_text("new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "old"


def test_permission_is_that_of_what_is_written(tmp_path, monkeypatch):
    writable = []
    monkeypatch.setattr("flashkat.system.files.os.access", lambda path, mode: path in writable)
    null, link = Path("/dev/null"), tmp_path / "link"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    link.symlink_to(tmp_path / "there" / "file")
    for path, written in ((null, null), (link, tmp_path / "there")):
        with pytest.raises(InputError, match=f"cannot write to {written}: permission denied"):
            check_writable(path)
        writable.append(written)
        check_writable(path)


def test_what_cannot_be_written(tmp_path):
    check_writable(tmp_path / "file")
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        check_writable(tmp_path / "nowhere" / "file")


def test_another_kind_of_file_is_not_overwritten(tmp_path):
    path = tmp_path / "file"
    check_writable(path, begins="model,")
    for content in (b"", b"model,top1\n"):
        path.write_bytes(content)
        check_writable(path, begins="model,")
    path.write_bytes(b"\x89PNG model,")
    with pytest.raises(InputError, match=r"another kind of file: give another name or remove it"):
        check_writable(path, begins="model,")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_new_folder_is_filled_in_one_step(tmp_path, is_there):
    folder = tmp_path / "folder"
    if is_there:
        folder.mkdir()
    with new_folder(folder) as staging:
        (staging / "a").mkdir()
        (staging / "a" / "file").write_text("whole")
        assert is_there == folder.exists()
    assert (folder / "a" / "file").read_text() == "whole"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_of_a_folder_that_is_half_filled_nothing_stays(tmp_path, error):
    def fail():
        with new_folder(tmp_path / "folder") as staging:
            (staging / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == []


def test_a_folder_with_files_is_not_filled(tmp_path):
    (tmp_path / "file").write_text("precious")
    for folder, words in ((tmp_path, "not empty"), (tmp_path / "file" / "below", "cannot write to")):
        with pytest.raises(InputError, match=words), new_folder(folder):
            pass
    assert names(tmp_path) == ["file"]


def test_what_stands_for_another_file():
    assert "git lfs pull" in placeholder(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    for head in (b"<!DOCTYPE html><html>", b"\n <html lang=en>"):
        assert "is a web page" in placeholder(head)
    for head in (b"", b"PK\x03\x04", b"\x89PNG", b"version 2", b"<svg>"):
        assert placeholder(head) == ""


def test_a_named_pipe_is_written_to_or_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with replaced(path) as partial:
        assert partial == path
    with replaced(path, keeps_special=False) as partial:
        partial.write_text("whole")
    assert path.read_text() == "whole"


def test_links_to_a_file_have_its_identity(tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    first.touch()
    other.touch()
    os.link(first, tmp_path / "link")
    assert identity(tmp_path / "link") == identity(first) != identity(other)
