"""The study's command: parts that add up, choices of flags, and what it prints."""

import pytest

from benchmarks.parts import common
from benchmarks.recipes import __main__ as command


@pytest.fixture
def call(monkeypatch, few_images, tmp_path):
    monkeypatch.setattr(command, "_ON_GPU", command._ON_CPU)

    def call(*flags, images=few_images):
        output = tmp_path / "recipes.test.json"
        folders = [images, "--work", tmp_path / "work", "--output", output]
        argv = ["cifar10", *folders, "--size", "toy", "--epochs", 1, "--batch-size", 4, *flags]
        command.main([str(each) for each in argv])
        return common.read(output)

    return call


def test_parts_add_up(call, capsys):
    first = call("--contenders", "kat", "--seeds", 1)
    assert [row["contender"] for row in first["rows"]] == ["kat"]
    both = call("--contenders", "kat,degrees=3-2+5-4", "vit", "--seeds", 1)
    assert both["rows"][0] == first["rows"][0]
    assert [row["contender"] for row in both["rows"]] == ["kat", "kat,degrees=5-4", "vit"]
    last = call("--split", "test", "--contenders", "vit", "--seeds", 1)
    assert last["rows"][:3] == both["rows"]
    assert not any(found["met"] for found in last["targets"])
    printed = capsys.readouterr().out
    assert "validation, 1 epochs" in printed
    assert "less kat" in printed
    assert "not done" not in printed


def test_other_settings_do_not_join(call):
    call("--contenders", "vit", "--seeds", 1)
    with pytest.raises(SystemExit, match="differ from this run in settings"):
        call("--contenders", "vit", "--seeds", 1, "--batch-size", 2)


def test_without_time_the_rest_is_named(call, capsys):
    document = call("--minutes", 0, "--seeds", 3)
    assert document["rows"] == []
    assert "2 of 2 are not done: validation-1/kat-3, validation-1/vit-3" in capsys.readouterr().out


def test_an_interrupt_is_one_line(call, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(command, "measured", interrupted)
    with pytest.raises(SystemExit) as stopped:
        call("--seeds", 1)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted: call again to go on\n"


def test_a_failure_is_told(call, capsys):
    with pytest.raises(SystemExit):
        call("--contenders", "vit", "--batch-size", 500, "--seeds", 1)
    assert "validation-1/vit-1 failed: flashkat train: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--contenders", "kat,depth=3"], "no factor 'depth'"),
        (["--size", "huge"], "no --size huge of cifar10: choose one of tiny, narrow, toy"),
    ],
)
def test_wrong_flags_are_told(call, flags, message):
    with pytest.raises(SystemExit, match=message):
        call(*flags)


@pytest.mark.parametrize("flag", ["--epochs", "--from-epochs", "--batch-size", "--val-interval", "--at-once"])
def test_numbers_below_one_are_told(call, capsys, flag):
    with pytest.raises(SystemExit):
        call(flag, "-1")
    assert f"argument {flag}: must be at least 1, not -1" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "name"), [("tiny", "recipes_cifar10.json"), ("toy", "recipes_cifar10_toy.json")])
def test_each_size_has_its_result(monkeypatch, few_images, tmp_path, size, name):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    command.main(["cifar10", str(few_images), "--minutes", "0", "--size", size, "--work", str(tmp_path / "work")])
    assert [path.name for path in (tmp_path / "results").iterdir()] == [name]


def test_cifar10_needs_its_images(call, tmp_path):
    with pytest.raises(SystemExit, match="give the folder of cifar10, with train/CLASS"):
        call(images=tmp_path)


def test_digits_are_written_once(monkeypatch, tmp_path):
    written = []

    def write(folder):
        written.append(folder)
        folder.mkdir(parents=True)

    monkeypatch.setattr(command, "write_digits", write)
    for _ in range(2):
        argv = ["digits", "--minutes", "0", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "d.json")]
        command.main(argv)
    assert written == [tmp_path / "work" / "images"]
