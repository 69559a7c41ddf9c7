import argparse
import csv
import json
import re
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from foreign import google_arrays
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from flashkat.checkpoints.export import renamed_for
from flashkat.cli.main import main
from flashkat.evaluation.evaluate import evaluate

MODEL = "kat_tiny_patch16_224"
KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
MODEL_KWARGS = ["--model-kwargs", *(f"{key}={value}" for key, value in KWARGS.items())]
CLASSES = ("dark", "light", "middle")
LEVELS = {"dark": 30, "middle": 128, "light": 225}
# Not timm's own, so that they have to come from the checkpoint.
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def write_images(root):
    """Three classes of a brightness each, with a third of the evaluation images in a wrong folder."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 9)):
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shown = CLASSES[(index + 1) % 3] if split == "val" and number % 3 == 0 else name
                pixels = generator.normal(LEVELS[shown], 15, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def run(*argv):
    return main([str(argument) for argument in argv])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are slower on several threads, by tens where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The folder of a run with averaged weights."""
    output = tmp_path_factory.mktemp("output")
    assert not run(
        *("train", images, "--model", MODEL, "--img-size", 8, *MODEL_KWARGS, "-j", 0, "-b", 8, "--output", output),
        *("--experiment", "run", "--epochs", 6, "--opt", "adamw", "--lr", 0.01, "--warmup-epochs", 0, "--no-aug"),
        *("--crop-pct", 1, "--interpolation", "bilinear", "--mean", *MEAN, "--std", *STD),
        *("--model-ema", "--model-ema-decay", 0.9, "--smoothing", 0),
    )
    return output / "run"


@pytest.fixture
def validate(capsys):
    """Runs ``flashkat validate``: its result, and the lines of its log."""

    def call(*argv):
        capsys.readouterr()
        status = run("validate", *argv, "-j", 0)
        out, err = capsys.readouterr()
        assert status == 0, err
        assert out.startswith("--result\n")
        return json.loads(out.removeprefix("--result\n")), err.splitlines()

    return call


@pytest.fixture
def refused(capsys):
    def call(*argv):
        capsys.readouterr()
        assert run("validate", *argv, "-j", 0) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()[-1]

    return call


def counted(images, checkpoint, key="state_dict"):
    """Top-1 in percent, with a model, images and a count of the test's own."""
    checkpoint = torch.load(checkpoint, weights_only=True)
    model = timm.create_model(MODEL, img_size=8, num_classes=3, **KWARGS)
    model.load_state_dict(checkpoint[key])
    model.eval()
    paths = sorted(images.glob("val/*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path), dtype=np.float64) for path in paths]) / 255
    with torch.no_grad():
        scores = model(torch.tensor(((pixels - MEAN) / STD).transpose(0, 3, 1, 2), dtype=torch.float32))
    predictions = [CLASSES[index] for index in scores.argmax(1)]
    assert len(set(predictions)) > 1
    right = [prediction == path.parent.name for prediction, path in zip(predictions, paths, strict=True)]
    return 100 * sum(right) / len(right)


def summary(folder):
    with (folder / "summary.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# --- the command ------------------------------------------------------------------------------------------------------


def test_result_is_timms(validate, images, trained):
    result, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert list(result) == [
        *("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation")
    ]
    assert result["model"] == MODEL
    assert result["img_size"] == 8
    # As the run had them, not as the model's defaults are.
    assert result["crop_pct"] == 1.0
    assert result["interpolation"] == "bilinear"
    assert result["top1"] + result["top1_err"] == pytest.approx(100)
    assert result["top5"] + result["top5_err"] == pytest.approx(100)


def test_log_is_timms(validate, images, trained):
    checkpoint = trained / "last.pth.tar"
    result, lines = validate(images, "--checkpoint", checkpoint, "-b", 4, "--log-freq", 3)
    parameters = sum(value.numel() for value in torch.load(checkpoint, weights_only=True)["state_dict"].values())
    assert lines[0] == "Validating in float32..."
    assert lines[1] == f"Loaded state_dict from checkpoint '{checkpoint}'"
    assert lines[2] == f"Model {MODEL} created, param count: {parameters}"
    assert result["param_count"] == round(parameters / 1e6, 2)
    assert lines[3] == "Data processing configuration for current model + dataset:"
    shown = dict(line.strip().split(": ", 1) for line in lines[4:10])
    assert all(line.startswith("\t") for line in lines[4:10])
    assert shown == {
        "input_size": "(3, 8, 8)",
        "interpolation": "bilinear",
        "mean": str(MEAN),
        "std": str(STD),
        "crop_pct": "1.0",
        "crop_mode": "center",
    }
    number = r" *\d+\.\d+"
    pattern = (
        rf"Test: \[ *(\d+)/7\]  Time: {number}s \({number}s, {number}/s\)  Loss: {number} \({number}\)  "
        rf"Acc@1: {number} \({number}\)  Acc@5: {number} \({number}\)"
    )
    tests = [re.fullmatch(pattern, line) for line in lines[10:-1]]
    # Every third of seven batches, and the last.
    assert [int(test[1]) for test in tests] == [0, 3, 6]
    last = re.fullmatch(rf" \* Acc@1 ({number}) \(({number})\) Acc@5 ({number}) \(({number})\)", lines[-1])
    found = [float(value) for value in last.groups()]
    assert found == pytest.approx([result[key] for key in ("top1", "top1_err", "top5", "top5_err")], abs=1e-3)
    # The last averages are the result.
    assert f"({result['top1']:.3f})" in lines[-2].replace("( ", "(")


def test_rate_counts_images(validate, images, trained):
    _, lines = validate(images, "--checkpoint", trained / "last.pth.tar")
    (line,) = [line for line in lines if line.startswith("Test:")]
    seconds, rate = re.search(r"\((\d+\.\d+)s, *(\d+\.\d+)/s\)", line).groups()
    assert float(rate) * float(seconds) < 2 * 27


@pytest.mark.parametrize("name", ["last.pth.tar", "model_best.pth.tar"])
def test_accuracy_is_that_of_an_independent_count(validate, images, trained, name):
    result, _ = validate(images, "--checkpoint", trained / name)
    assert result["top1"] == pytest.approx(counted(images, trained / name), abs=1e-3)
    assert 0 < result["top1"] < 100
    # Three classes: the right one is always among five.
    assert result["top5"] == 100


def test_accuracy_is_that_of_the_summary(validate, images, trained):
    rows = summary(trained)
    last, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert last["top1"] == pytest.approx(rows[-1]["eval_top1"], abs=1e-3)
    average, lines = validate(images, "--checkpoint", trained / "last.pth.tar", "--use-ema")
    assert average["top1"] == pytest.approx(rows[-1]["eval_ema_top1"], abs=1e-3)
    assert average["top1"] == pytest.approx(counted(images, trained / "last.pth.tar", "state_dict_ema"), abs=1e-3)
    assert lines[1].startswith("Loaded state_dict_ema from checkpoint")


def test_best_accuracy_is_that_of_the_summary(validate, images, trained):
    rows = summary(trained)
    best = torch.load(trained / "model_best.pth.tar", weights_only=True)
    flags = ["--use-ema"] if best["metric_weights"] == "state_dict_ema" else []
    result, _ = validate(images, "--checkpoint", trained / "model_best.pth.tar", *flags)
    assert result["top1"] == pytest.approx(
        max(row[name] for row in rows for name in ("eval_top1", "eval_ema_top1")), abs=1e-3
    )


@pytest.mark.parametrize("batch", [1, 4, 27, 128])
def test_batches_do_not_matter(validate, images, trained, batch):
    expected = summary(trained)[-1]["eval_top1"]
    result, _ = validate(images, "--checkpoint", trained / "last.pth.tar", "-b", batch)
    assert result["top1"] == pytest.approx(expected, abs=1e-3)


def test_folder_of_the_classes_itself_and_named_splits(validate, images, trained, tmp_path):
    checkpoint = ["--checkpoint", trained / "last.pth.tar"]
    expected, _ = validate(images, *checkpoint)
    assert validate(images / "val", *checkpoint)[0] == expected
    shutil.copytree(images / "val", tmp_path / "validation")
    assert validate(tmp_path, *checkpoint)[0] == expected
    other, _ = validate(images, *checkpoint, "--split", "train")
    # No training image is in a wrong folder.
    assert other["top1"] > expected["top1"]


def test_other_class_names_are_refused(refused, images, trained, tmp_path):
    shutil.copytree(images / "val", tmp_path / "val")
    (tmp_path / "val" / "middle").rename(tmp_path / "val" / "grey")
    line = refused(tmp_path, "--checkpoint", trained / "last.pth.tar")
    assert "other classes than the checkpoint was trained on" in line
    # The names, sorted, shift the outputs too.
    assert "dark" in line


def test_fewer_and_more_classes_are_refused(refused, images, trained, tmp_path):
    shutil.copytree(images / "val", tmp_path / "val")
    shutil.rmtree(tmp_path / "val" / "middle")
    assert "2 from dark to light, not 3 from dark to middle" in refused(
        tmp_path, "--checkpoint", trained / "last.pth.tar"
    )
    model = timm.create_model(MODEL, img_size=8, num_classes=5, **KWARGS)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    line = refused(images, "--checkpoint", tmp_path / "weights.pth", *config_flags())
    assert line.endswith("has 3 classes, the model has 5 outputs")


def test_run_with_more_outputs_than_classes(validate, images, tmp_path):
    assert not run(
        *("train", images, "--model", MODEL, "--img-size", 8, *MODEL_KWARGS, "-j", 0, "-b", 8, "--epochs", 1),
        *("--num-classes", 5, "--output", tmp_path, "--experiment", "run"),
    )
    result, _ = validate(images, "--checkpoint", tmp_path / "run" / "last.pth.tar")
    assert result["top1"] == pytest.approx(summary(tmp_path / "run")[-1]["eval_top1"], abs=1e-3)


def config_flags(with_model=True):
    flags = ["--img-size", 8, "--crop-pct", 1, "--interpolation", "bilinear", "--mean", *MEAN, "--std", *STD]
    return ["--model", MODEL, *MODEL_KWARGS, *flags] if with_model else flags


def test_safetensors_weights_of_a_named_model(validate, images, trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"], path)
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    # The number of classes is that of the weights.
    assert validate(images, "--checkpoint", path, *config_flags())[0] == expected


def test_no_interpolation_is_the_checkpoints(validate, images, trained):
    """As timm writes a flag that was not given."""
    result, _ = validate(images, "--checkpoint", trained / "last.pth.tar", "--interpolation", "")
    assert result["interpolation"] == "bilinear"


def test_weights_alone(validate, images, trained, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "weights.pth")
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert validate(images, "--checkpoint", tmp_path / "weights.pth", *config_flags())[0] == expected


@pytest.mark.parametrize("name", ["flash_kat_tiny_patch16_224", "kat_tiny_swish_patch16_224"])
def test_other_names_of_a_model_take_what_its_checkpoint_says(validate, images, trained, name):
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    found, _ = validate(images, "--checkpoint", trained / "last.pth.tar", "--model", name)
    assert found == {**expected, "model": name}


def test_checkpoint_of_timms_own_script(validate, images, trained, tmp_path):
    ours = torch.load(trained / "last.pth.tar", weights_only=True)
    args = argparse.Namespace(
        model=MODEL,
        model_kwargs=KWARGS,
        img_size=8,
        num_classes=None,
        crop_pct=1.0,
        interpolation="bilinear",
        mean=list(MEAN),
        std=list(STD),
        aa=None,
        experiment="",
    )
    timms = {"epoch": 5, "arch": MODEL, "state_dict": ours["state_dict"], "args": args, "version": 2, "metric": 50.0}
    torch.save(timms, tmp_path / "timm.pth.tar")
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert validate(images, "--checkpoint", tmp_path / "timm.pth.tar")[0] == expected


def test_flags_go_before_the_checkpoint(validate, images, trained):
    result, lines = validate(
        images, "--checkpoint", trained / "last.pth.tar", "--crop-pct", 0.5, "--interpolation", "bicubic", "--mean", 0.1
    )
    assert result["crop_pct"] == 0.5
    assert result["interpolation"] == "bicubic"
    assert "\tmean: (0.1, 0.1, 0.1)" in lines
    assert f"\tstd: {STD}" in lines


def test_without_a_checkpoint_the_published_weights_are_taken(validate, images, monkeypatch):
    create, asked = timm.create_model, {}

    def offline(name, **kwargs):
        asked.update(kwargs)
        return create(name, **{**kwargs, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", offline)
    _, lines = validate(images, *config_flags(), "--num-classes", 3)
    assert asked["pretrained"] is True
    assert not any(line.startswith("Loaded") for line in lines)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(validate, images, trained, dtype):
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    result, lines = validate(images, "--checkpoint", trained / "last.pth.tar", "--amp", "--amp-dtype", dtype)
    assert lines[0] == f"Validating in mixed precision ({dtype})..."
    # A few of 27 images may fall on the other side.
    assert result["top1"] == pytest.approx(expected["top1"], abs=12)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"args": "text"},
        {"args": ["text"]},
        {"arch": 3},
        {"args": {"model_kwargs": None}},
    ],
)
def test_checkpoint_with_odd_entries(refused, images, checkpoint, tmp_path):
    torch.save({"arch": MODEL, "state_dict": {"a": torch.ones(1)}, **checkpoint}, tmp_path / "odd.pth")
    refused(images, "--checkpoint", tmp_path / "odd.pth")


@pytest.mark.parametrize("odd", [{"classes": 3}, {"epoch": "last"}, {"args": None}, {"args": {"model_kwargs": [1]}}])
def test_odd_entries_beside_good_weights(validate, images, trained, odd, tmp_path):
    checkpoint = torch.load(trained / "last.pth.tar", weights_only=True)
    # What else these entries could have said.
    flags = [*MODEL_KWARGS, "--img-size", 8, "--crop-pct", 1, "--interpolation", "bilinear", "--mean", *MEAN]
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar", *flags, "--std", *STD)
    torch.save({**checkpoint, **odd}, tmp_path / "odd.pth")
    result, _ = validate(images, "--checkpoint", tmp_path / "odd.pth", *flags, "--std", *STD)
    assert result == expected


def test_ema_of_no_checkpoint(refused, images):
    assert "--use-ema needs a --checkpoint" in refused(images, "--use-ema")


# --- the function -----------------------------------------------------------------------------------------------------


class Scores(nn.Module):
    """Passes its input on as scores; knows its mode while it does."""

    modes: tuple = ()

    def forward(self, x):
        self.modes += ((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),)
        return x


class Reversed(nn.Module):
    """Other scores of the same images."""

    def forward(self, x):
        return x.flip(1)


def test_evaluate_averages_over_images():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(23, 7, generator=generator)
    target = torch.randint(0, 7, (23,), generator=generator)
    model = Scores().train()
    # A last batch of another size.
    loader = list(zip(scores.split(10), target.split(10), strict=True))
    seen = []
    models = {"scores": model, "reversed": Reversed()}
    one_pass = iter(loader)
    found = evaluate(models, one_pass, nullcontext(), lambda index, meters: seen.append((index, meters.metrics().top1)))

    def share(condition):
        return 100 * float(condition.double().mean())

    def ranks_of(scores):
        return (scores > scores.gather(1, target[:, None])).sum(1)

    ranks, metrics = ranks_of(scores), found["scores"]
    log_softmax = scores.double() - scores.double().exp().sum(1, keepdim=True).log()
    assert metrics.loss == pytest.approx(-float(log_softmax[range(23), target].mean()), rel=1e-5)
    assert metrics.top1 == pytest.approx(share(ranks == 0), rel=1e-5)
    assert metrics.top5 == pytest.approx(share(ranks < 5), rel=1e-5)
    assert metrics.top1 < metrics.top5 < 100
    assert found["reversed"].top1 == pytest.approx(share(ranks_of(scores.flip(1)) == 0), rel=1e-5)
    assert found["reversed"].top1 != metrics.top1
    assert [index for index, _ in seen] == [0, 1, 2]
    assert seen[-1][1] == metrics.top1
    assert seen[0][1] == pytest.approx(share(ranks[:10] == 0), rel=1e-5)
    assert model.modes == ((False, False, False),) * 3


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_evaluate_with_at_most_five_classes(classes):
    scores = torch.eye(classes).repeat(3, 1)
    target = torch.arange(classes).repeat(3)
    metrics = evaluate({"": Scores()}, [(scores, target), (scores, target.flip(0))], nullcontext())[""]
    assert metrics.top5 == 100
    assert metrics.top1 == pytest.approx(50 * (1 + float((target == target.flip(0)).double().mean())))


def test_evaluate_under_autocast():
    model = Scores()
    metrics = evaluate({"": model}, [(torch.eye(2), torch.arange(2))] * 2, torch.autocast("cpu", torch.bfloat16))[""]
    assert model.modes == ((False, False, True),) * 2
    assert metrics.top1 == 100
    assert not torch.is_autocast_enabled("cpu")


def test_another_image_size_resamples_the_position_embedding(validate, images, trained):
    result, _ = validate(images, "--checkpoint", trained / "last.pth.tar", "--img-size", 16)
    assert result["img_size"] == 16


def test_weights_alone_need_a_model(refused, images, trained, tmp_path):
    torch.save(torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"], tmp_path / "weights.pth")
    assert "give --model" in refused(images, "--checkpoint", tmp_path / "weights.pth")


# --- checkpoints of others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("style", ["kat", "flashkat"])
def test_foreign_names(validate, images, trained, style, suffix, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    theirs = renamed_for(state, style, "ours")
    assert theirs.keys() != state.keys()
    path = tmp_path / f"weights{suffix}"
    save_file(theirs, path) if suffix == ".safetensors" else torch.save(theirs, path)
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert validate(images, "--checkpoint", path, *config_flags())[0] == expected


def test_googles_vit(validate, refused, images, tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=8, num_classes=3, **KWARGS)
    np.savez(tmp_path / "vit.npz", **google_arrays(vit))
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    flags = ["--model", "vit_tiny_patch16_224", "--img-size", 8, *MODEL_KWARGS]
    expected, _ = validate(images, "--checkpoint", tmp_path / "vit.pth", *flags)
    assert validate(images, "--checkpoint", tmp_path / "vit.npz", *flags)[0] == expected
    line = refused(images, "--checkpoint", tmp_path / "vit.npz", *config_flags())
    assert "4 missing (blocks.0.mlp.act1.denominator, blocks.0.mlp.act1.numerator, ...)" in line


def test_partial_checkpoint(validate, images, trained, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    torch.save({**state, "extra": torch.ones(1)}, tmp_path / "more.pth")
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    result, lines = validate(images, "--checkpoint", tmp_path / "more.pth", "--partial", *config_flags())
    assert result == expected
    assert f"{tmp_path / 'more.pth'} fits in part: 1 unexpected (extra)" in lines


def test_model_in_a_folder(validate, images, trained, tmp_path):
    state = torch.load(trained / "last.pth.tar", weights_only=True)["state_dict"]
    torch.save(renamed_for(state, "kat", "ours"), tmp_path / "pytorch_model.bin")
    pretrained = {"num_classes": 3, "input_size": [3, 8, 8], "fixed_input_size": True, "crop_pct": 1.0}
    pretrained |= {"interpolation": "bilinear", "mean": MEAN, "std": STD, "classifier": "head"}
    config = {"architecture": MODEL, "num_classes": 3, "model_args": KWARGS, "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    result, _ = validate(images, "--model", f"local-dir:{tmp_path}")
    assert {**result, "model": MODEL} == expected


def test_an_image_size_for_a_model_that_takes_any(validate, images, tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "resnet.pth")
    flags = ["--model", "test_resnet", "--num-classes", 3, "--img-size", 32]
    result, _ = validate(images, *flags, "--checkpoint", tmp_path / "resnet.pth")
    assert result["img_size"] == 32
