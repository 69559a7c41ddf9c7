"""Files of strangers: whatever they say, a command reads numbers from them, and reaches for nothing else."""

import json
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from foreign import MakesFile
from PIL import Image
from safetensors.torch import save_file

from flashkat.cli.main import main
from flashkat.training import Result

MODEL = "kat_tiny_patch16_224"
KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model(MODEL, img_size=8, num_classes=2, **KWARGS).state_dict()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name / "1.png")
    return root


@pytest.fixture(autouse=True)
def nothing_is_reached(monkeypatch, tmp_path):
    """No network and no downloader, and a folder of the user's that stays empty."""

    def reach(*args, **kwargs):
        pytest.fail(f"reached for {args} {kwargs}")

    monkeypatch.setattr(socket.socket, "connect", reach)
    for place in ("timm.models._hub.hf_hub_download", "timm.models._builder.load_state_dict_from_url"):
        monkeypatch.setattr(place, reach)
    monkeypatch.setattr("timm.models._builder.download_cached_file", reach)
    home = tmp_path / "home"
    home.mkdir()
    yield home
    assert not any(home.iterdir())


def checkpoint(path, state, args=None, arch=MODEL, **model_kwargs):
    args = {"img_size": 8, "num_classes": 2, "model_kwargs": {**KWARGS, **model_kwargs}, **(args or {})}
    torch.save({"arch": arch, "args": args, "epoch": 0, "state_dict": state}, path)
    return path


@pytest.fixture
def refused(images, tmp_path, capsys):
    """The line with which ``validate``, ``plot`` and ``inspect`` refuse a checkpoint."""

    def run(path):
        lines = set()
        for argv in (
            ["validate", images, "--checkpoint", path, "-j", 0, "--device", "cpu"],
            ["plot", path, "-o", tmp_path / "rationals.png"],
            ["inspect", path, "--html", tmp_path / "report.html"],
        ):
            assert main([str(argument) for argument in argv]) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            lines.add(err.partition(": error: ")[2])
        (line,) = lines
        return line

    return run


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_an_honest_checkpoint_works(tmp_path, state, images, capsys):
    path = checkpoint(tmp_path / "a.pth.tar", state)
    assert main(["validate", str(images), "--checkpoint", str(path), "-j", "0", "--device", "cpu"]) == 0
    assert MODEL in capsys.readouterr().out


ATTACKS = {
    "pretrained": True,
    "pretrained_cfg": {"url": "http://127.0.0.1:9/authorized_keys"},
    "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/authorized_keys", "hf_hub_id": None},
    "checkpoint_path": "/etc/passwd",
    "cache_dir": "/root/.ssh",
    "scriptable": True,
    "features_only": True,
    "pretrained_strict": False,
    "mlp_layer": "os.system",
    "block_fn": "x",
    "device": "cuda",
    "dtype": "float64",
}


@pytest.mark.parametrize("key", ATTACKS)
def test_arguments_that_are_no_architecture_are_refused_by_name(key, tmp_path, state, refused):
    line = refused(checkpoint(tmp_path / "a.pth.tar", state, **{key: ATTACKS[key]}))
    assert f"a.pth.tar sets {key} of the model, which a file may not" in line


def test_a_download_into_a_folder_of_the_users(tmp_path, state, refused, nothing_is_reached):
    overlay = {"url": "http://127.0.0.1:9/authorized_keys", "hf_hub_id": None}
    attack = {"pretrained_cfg_overlay": overlay, "pretrained": True, "cache_dir": str(nothing_is_reached)}
    assert "which a file may not" in refused(checkpoint(tmp_path / "a.pth.tar", state, **attack))


@pytest.mark.parametrize(
    "arch", ["hf-hub:someone/x", "hf_hub:someone/x", "local-dir:/tmp", "../kat", "nothing", "", "a\nb"]
)
def test_a_model_outside_the_registry(arch, tmp_path, state, refused):
    line = refused(checkpoint(tmp_path / "a.pth.tar", state, arch=arch))
    assert "which timm's registry does not have" in line or "does not say what model it is of" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", 10**7),
        ("depth", "12"),
        ("depth", True),
        ("depth", -1),
        ("embed_dim", 10**9),
        ("embed_dim", float("nan")),
        ("num_heads", 0),
        ("patch_size", [4] * 10**5),
        ("patch_size", []),
        ("img_size", 10**6),
        ("m", 10**6),
        ("m", 64),
        ("n", 64),
        ("n", -1),
        ("den_groups", 2**40),
        ("qkv_bias", "no"),
        ("mlp_ratio", float("inf")),
        ("drop_rate", 2),
        ("act_layer", "__import__('os')"),
        ("norm_layer", {"a": 1}),
    ],
)
def test_values_out_of_bounds_are_refused_at_once(key, value, tmp_path, state, refused):
    assert f"{key} has to be" in refused(checkpoint(tmp_path / "a.pth.tar", state, **{key: value}))


def test_sizes_that_are_large_together(tmp_path, state, refused):
    line = refused(checkpoint(tmp_path / "a.pth.tar", state, depth=512, embed_dim=2**14))
    assert "more than this machine's memory holds" in line


def test_a_large_model_of_a_small_file(tmp_path, state, refused):
    """Of the registry, without a single argument."""
    torch.save({"arch": "vit_giant_patch14_clip_224", "args": {}, "state_dict": state}, tmp_path / "a.pth.tar")
    assert "numbers and asks for vit_giant_patch14_clip_224 with" in refused(tmp_path / "a.pth.tar")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("img_size", "8"),
        ("img_size", []),
        ("mean", []),
        ("input_size", [3, 8, 10**6]),
        ("in_chans", 10**6),
        ("num_classes", 10**9),
        ("crop_pct", 0),
        ("mean", ["a"]),
        ("std", [0, 0, 0]),
        ("interpolation", "../x"),
        ("gp", ["avg"]),
    ],
)
def test_images_out_of_bounds(key, value, tmp_path, state, refused):
    assert f"{key} has to be" in refused(checkpoint(tmp_path / "a.pth.tar", state, {key: value}))


def test_what_the_command_line_sets_is_not_taken_from_a_file(tmp_path, state, images):
    path = checkpoint(tmp_path / "a.pth.tar", state, depth=10**7)
    argv = ["validate", images, "--checkpoint", path, "-j", 0, "--device", "cpu", "--model-kwargs", "depth=1"]
    assert main([str(argument) for argument in argv]) == 0


def test_metadata_of_safetensors_is_not_looked_at(tmp_path, state, images):
    metadata = {"format": "pt", "arch": "hf-hub:someone/x", "args": json.dumps({"pretrained": True}), "digest": "0"}
    save_file(state, tmp_path / "a.safetensors", metadata)
    argv = ["validate", images, "--checkpoint", tmp_path / "a.safetensors", "-j", 0, "--device", "cpu"]
    argv += ["--model", MODEL, "--img-size", 8, "--model-kwargs", *(f"{key}={value}" for key, value in KWARGS.items())]
    assert main([str(argument) for argument in argv]) == 0


# --- args.yaml --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path, images, capsys, monkeypatch):
    """The status and the error of ``train`` with a file of flags, for a run that is made of them but not trained."""
    monkeypatch.setattr("flashkat.training.train", lambda config: Result(Path(config.model.model), [], {}))

    def run(flags, *typed):
        (tmp_path / "args.yaml").write_text(yaml.safe_dump(flags))
        try:
            status = main(["train", str(images), "-c", str(tmp_path / "args.yaml"), *typed])
        except SystemExit as stopped:
            status = stopped.code
        return status, capsys.readouterr().err

    return run


def test_modules_are_imported_for_the_command_line_alone(config, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise RuntimeError('ran')")
    monkeypatch.chdir(tmp_path)
    status, err = config({"device_modules": ["evil"]})
    assert (status, err.count("\n")) == (2, 1)
    assert "device_modules in " in err
    assert "a file may not ask for code to be run: the command line alone may, with --device-modules" in err
    assert "evil" not in sys.modules
    assert config({"device_modules": ["evil"]}, "--device-modules", "json") == (0, "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model": "hf-hub:someone/x"}, "model in "),
        ({"kd_model_name": "local-dir:/tmp"}, "kd_model_name in "),
        ({"dataset_trust_remote_code": True}, "dataset_trust_remote_code in "),
        ({"dataset": "wds/", "train_split": "pipe:touch ran.tar"}, "train_split in "),
        ({"model_kwargs": {"checkpoint_path": "/etc/passwd"}}, "sets checkpoint_path of the model"),
        ({"model_kwargs": {"cache_dir": "/tmp"}}, "sets cache_dir of the model"),
        ({"model_kwargs": {"depth": 10**7}}, "depth has to be"),
        ({"opt_kwargs": {"foreach": {"a": 1}}}, "foreach has to be"),
    ],
)
def test_flags_that_a_file_may_not_set(flags, words, config):
    status, err = config(flags)
    assert (status, err.count("\n")) == (2, 1)
    assert words in err


def test_models_that_are_typed_go_before_those_of_a_file(config):
    assert config({"model": "hf-hub:someone/x"}, "--model", MODEL) == (0, "")
    assert config({"model_kwargs": {"cache_dir": "/tmp"}}, "--model-kwargs", "depth=1") == (0, "")


# --- folders and class maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "sets checkpoint_path of the model"),
        ({"model_args": {"depth": 10**7}}, "depth has to be"),
        ({"architecture": "hf-hub:someone/x"}, "which timm's registry does not have"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "input_size has to be"),
        ({"pretrained_cfg": {"url": "http://127.0.0.1:9/x", "custom_load": "hf"}}, "No suitable checkpoints found"),
    ],
)
def test_configurations_in_folders(change, words, tmp_path, images, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    configuration = {"architecture": MODEL, "num_classes": 2, "model_args": KWARGS, "pretrained_cfg": {}, **change}
    (folder / "config.json").write_text(json.dumps(configuration))
    argv = ["validate", str(images), "--model", f"local-dir:{folder}", "-j", "0", "--device", "cpu"]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err


def test_a_class_map_is_text(tmp_path, images, capsys, nothing_is_reached):
    (tmp_path / "map.pkl").write_bytes(pickle.dumps({"cat": MakesFile(nothing_is_reached / "ran")}))
    (tmp_path / "map.txt").write_bytes(b"\x80\xff\x00")
    for name, words in (("map.pkl", "is no .txt"), ("map.txt", "cannot read")):
        argv = ["validate", str(images), "--class-map", str(tmp_path / name), "--model", MODEL, "--img-size", "8"]
        argv += ["--checkpoint", str(tmp_path / "weights.pth"), "--model-kwargs"]
        torch.save(timm.create_model(MODEL, img_size=8, num_classes=2, **KWARGS).state_dict(), tmp_path / "weights.pth")
        assert main([*argv, *(f"{key}={value}" for key, value in KWARGS.items()), "-j", "0"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert words in err


# --- what is printed --------------------------------------------------------------------------------------------------


def test_names_of_files_cannot_speak_to_the_terminal(tmp_path, images, capsys):
    path = tmp_path / "\x1b[2J\x1b]0;owned\x07\u202e.pth"
    path.write_bytes(b"no checkpoint")
    assert main(["validate", str(images), "--checkpoint", str(path)]) == 2
    err = capsys.readouterr().err
    assert r"\x1b[2J\x1b]0;owned\x07\u202e.pth is not a checkpoint" in err
    assert all(sign.isprintable() for sign in err.rstrip("\n"))


@pytest.mark.parametrize(
    "flags", [["--checkpoint"], ["--results-file"], ["--class-map"], ["--real-labels"], ["--split"], ["--model"]]
)
def test_names_of_3000_characters(flags, tmp_path, state, images, capsys):
    argv = ["validate", images, "--checkpoint", checkpoint(tmp_path / "a.pth", state), "-j", 0, *flags, "a" * 3000]
    assert main([str(argument) for argument in argv]) == 2
    last = capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("flashkat validate: error: ")
    assert len(last) < 2200
