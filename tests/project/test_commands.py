"""The commands from a checkout, as KAT's and FlashKAT's users type them."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flashkat.cli.parser import Parser
from flashkat.cli.train_flags import add_training_arguments
from flashkat.models import create_model

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "scripts").glob("*.sh"))

# What FlashKAT's users type, word for word.
RECIPE = shlex.split("""--model flash_kat_tiny_swish_patch16_224 -b 128 --opt adamw --lr 1e-3 --weight-decay 0.05
    --epochs 300 --mixup 0.8 --cutmix 1.0 --sched cosine --smoothing 0.1 --drop-path 0.1 --aa rand-m9-mstd0.5
    --remode pixel --reprob 0.25 --amp --crop-pct 0.875 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --model-ema
    --model-ema-decay 0.9999 --output output/kat_tiny_swish_patch16_224
    --model-kwargs m=6 n=4 num_groups=1 den_groups=8 --log-wandb""")
KWARGS = ["m=6", "n=4", "num_groups=1", "den_groups=8"]


def parse(argv):
    parser = Parser(prog="flashkat train")
    add_training_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def command(tmp_path):
    def run(*argv, **environment):
        variables = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment}
        return subprocess.run(
            [str(argument) for argument in argv], cwd=tmp_path, env=variables, capture_output=True, text=True
        )

    return run


@pytest.fixture
def ended(monkeypatch, capsys):
    """Runs a script in this process, and returns its exit status and what it prints."""

    def run(script, *argv):
        monkeypatch.setattr(sys, "argv", [str(word) for word in (script, *argv)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def torchrun(tmp_path):
    """A Python that only writes down how it was called."""
    path = tmp_path / "python"
    path.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > ' + str(tmp_path / "called") + "\n")
    path.chmod(0o755)
    return path, lambda: (tmp_path / "called").read_text().splitlines()


def test_the_recipe_of_flashkats_users_parses():
    args = parse(["data", *RECIPE])
    assert args.model == "flash_kat_tiny_swish_patch16_224"
    assert args.model_kwargs == {"m": 6, "n": 4, "num_groups": 1, "den_groups": 8}
    assert args.log_wandb


def test_dist_train_launches_that_many_processes(command, torchrun):
    python, called = torchrun
    done = command("bash", ROOT / "dist_train.sh", 8, "data", *RECIPE, PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    words = called()
    assert words == ["-m", "flashkat.cli.launch", "8", "data", *RECIPE]


def test_the_recipe_of_flashkats_users_runs_to_its_end(command, images, tmp_path):
    """In two processes, unchanged but for epochs, depth and the size of images and batches, logged by a stand-in."""
    logged = tmp_path / "logged"
    (tmp_path / "wandb.py").write_text(
        f"class Run:\n    def log(self, row):\n        open({str(logged)!r}, 'a').write(str(row) + chr(10))\n\n\n"
        "def init(**kwargs):\n    return Run()\n"
    )
    flags = ["--epochs", 2, "-b", 2, "--img-size", 32, "-j", 1, "--experiment", "run"]
    flags += ["--model-kwargs", *KWARGS, "depth=1"]
    done = command("bash", ROOT / "dist_train.sh", 2, images, *RECIPE, *flags, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "output" / "kat_tiny_swish_patch16_224" / "run"
    checkpoint = torch.load(folder / "last.pth.tar", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(
        torch.isfinite(each).all() for name in ("state_dict", "state_dict_ema") for each in checkpoint[name].values()
    )
    assert logged.read_text().count("train_loss") == 2
    results = json.loads(done.stdout.partition("--result\n")[2])
    assert [epoch["epoch"] for epoch in results["all"]] == [0, 1]
    assert results["best"]["validation"].keys() == {"loss", "top1", "top5"}


@pytest.mark.parametrize("argv", [[], ["data"], ["0", "data"]])
def test_dist_train_wants_a_number(command, argv):
    done = command("bash", ROOT / "dist_train.sh", *argv)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_there_is_a_recipe_for_every_published_model():
    assert {path.name for path in RECIPES} == {
        f"train_{kind}_{size}_8x128{start}.sh"
        for kind in ("kat", "flashkat")
        for size in ("tiny", "small", "base")
        for start in ("", "_vitft")
    } | {"train_flash_kat_small_8x128.sh"}


def published_flags(kind, size, start):
    """The words of a published script, in its order. KAT-Small loads a ViT by other flags than its sisters."""
    words = [*RECIPE]
    words[1] = f"{kind}_{size}_swish_patch16_224"
    words[words.index("--output") + 1] = f"output/kat_{size}_swish_patch16_224"
    words[words.index("--drop-path") + 1] = "0.4" if size == "base" else "0.1"
    kwargs = words.index("--model-kwargs")
    loads = {"scratch": [], "vitft": ["--initial-checkpoint", "vit.npz"]}[start]
    if loads and size == "small":
        loads = ["--pretrained-path", "vit.npz", "--pretrained"]
    return [*words[:kwargs], *loads, *(words[kwargs:] if kind == "flash_kat" else words[-1:])]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_the_published_ones_word_for_word(recipe, command, torchrun, tmp_path):
    python, called = torchrun
    (tmp_path / "vit.npz").touch()
    done = command("bash", recipe, DATA_PATH="my data", VIT_WEIGHTS="vit.npz", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    kind, size = re.match(r"train_(kat|flash_?kat)_(tiny|small|base)", recipe.stem).groups()
    start = "vitft" if "vitft" in recipe.stem else "scratch"
    flags = published_flags(kind.replace("flashkat", "flash_kat"), size, start)
    assert called() == ["-m", "flashkat.cli.launch", "8", "my data", *flags]


def test_our_recipe_is_the_published_one_with_two_changes_and_without_wandb(command, torchrun):
    python, called = torchrun
    done = command("bash", ROOT / "recipes/imagenet.sh", "kat", "tiny", "scratch", DATA_PATH="data", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    flags = [*published_flags("kat", "tiny", "scratch")[:-1], "--clip-grad", "1", "--model-ema-warmup"]
    assert called()[3:] == ["data", *flags]
    done = command("bash", ROOT / "recipes/imagenet.sh")
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "usage")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(recipe, command, torchrun, tmp_path):
    python, called = torchrun
    (tmp_path / "vit.npz").touch()
    done = command("bash", recipe, "--epochs", 3, DATA_PATH="my data", VIT_WEIGHTS="vit.npz", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    words = called()
    assert words[2] == "8"
    args = parse(words[3:])
    kind, size = re.match(r"train_(kat|flash_?kat)_(tiny|small|base)", recipe.stem).groups()
    assert args.data_dir == "my data"
    assert args.model == f"{'kat' if kind == 'kat' else 'flash_kat'}_{size}_swish_patch16_224"
    assert (args.batch_size, args.opt, args.lr, args.weight_decay) == (128, "adamw", 1e-3, 0.05)
    assert (args.mixup, args.cutmix, args.smoothing, args.aa) == (0.8, 1.0, 0.1, "rand-m9-mstd0.5")
    assert (args.drop_path, args.epochs) == (0.4 if size == "base" else 0.1, 3)
    assert (args.model_ema, args.model_ema_decay, args.model_ema_warmup) == (True, 0.9999, False)
    assert (args.pretrained_path or args.initial_checkpoint) == ("vit.npz" if "vitft" in recipe.stem else "")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_say_what_they_need(recipe, command, torchrun):
    done = command("bash", recipe, PYTHON=str(torchrun[0]))
    assert done.returncode == 2
    assert "set DATA_PATH to the data set" in done.stderr


@pytest.mark.parametrize("recipe", [path for path in RECIPES if "vitft" in path.stem], ids=lambda path: path.stem)
def test_recipes_from_a_vit_take_googles_by_default(recipe, command, torchrun, tmp_path):
    python, called = torchrun
    done = command("bash", recipe, DATA_PATH="data", PYTHON=str(python))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    missing = re.search(r"no file (\S+): set VIT_WEIGHTS to the weights of a ViT", done.stderr)[1]
    path = tmp_path / missing
    assert path.name.startswith(
        {"tiny": "Ti_16-i21k", "small": "S_16-i21k", "base": "B_16-i21k"}[recipe.stem.split("_")[2]]
    )
    path.parent.mkdir()
    path.touch()
    assert command("bash", recipe, DATA_PATH="data", PYTHON=str(python)).returncode == 0
    args = parse(called()[3:])
    assert (args.pretrained_path or args.initial_checkpoint) == missing


def test_train_and_validate_are_doors(command, ended, images, tmp_path):
    tiny = ["--img-size", 8, "--model-kwargs", "patch_size=4", "embed_dim=16", "depth=1", "num_heads=2"]
    flags = ["--model", "kat_tiny_patch16_224", *tiny, "-j", 0, "-b", 4, "--epochs", 1, "--experiment", "run"]
    done = command(sys.executable, ROOT / "train.py", images, *flags)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "output" / "train" / "run"
    assert yaml.safe_load((run / "args.yaml").read_text())["epochs"] == 1

    status, out, err = ended("validate.py", images, "--checkpoint", run / "last.pth.tar", "-j", 0)
    assert status == 0, err
    assert json.loads(out.removeprefix("--result\n"))["model"] == "kat_tiny_patch16_224"
    assert " * Acc@1" in err
    status, _, err = ended("train.py", images, "--epohcs", 3)
    assert status == 2
    assert "did you mean --epochs" in err


@pytest.mark.parametrize("name", ["train.py", "validate.py"])
def test_a_python_without_what_they_need(command, name):
    done = command(sys.executable, "-S", ROOT / name, "data")  # without installed packages
    assert done.returncode == 1
    # The package's own command says it where the checkout was installed once.
    program = rf"({name}|flashkat {Path(name).stem}: error)"
    missing = r"No (module named '\w+'|package metadata .*)"
    assert re.fullmatch(rf"{program}: {missing}: .* pip install -e '\.\[training\]'\n", done.stderr)


def test_the_example_names_five_classes(monkeypatch, capsys):
    """With a small model whose weights are random, in place of the published one."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    example = runpy.run_path(str(ROOT / "example.py"))
    made = create_model("kat_tiny_patch16_224", depth=1)
    monkeypatch.setitem(example["main"].__globals__, "create_model", lambda name, pretrained: made)
    example["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(re.fullmatch(r" *\d+\.\d%  \w.*", line) for line in lines)


@pytest.mark.parametrize(("name", "reason"), [("no.jpg", "No such file or directory"), ("text.jpg", "it is no image")])
def test_the_example_says_what_is_wrong(ended, tmp_path, name, reason):
    (tmp_path / "text.jpg").write_text("no image")
    status, _, err = ended("example.py", tmp_path / name)
    assert status == 2
    assert err == f"example.py: error: cannot read {tmp_path / name}: {reason}; name an image file\n"


def test_operations_are_counted_under_kats_name(ended):
    status, out, err = ended("tools/calculate_flops.py")
    assert status == 0, err
    assert out.startswith("kat_tiny_gelu_patch16_224, 224 x 224")
