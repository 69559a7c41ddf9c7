"""One pass of a model over images: by the command against an independent count, and the function itself."""

import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny import KWARGS, MODEL
from torch import nn

from flashkat.evaluation.evaluate import evaluate

# Not timm's own, so that they have to come from the checkpoint.
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


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
    classes = ["dark", "light", "middle"]
    predictions = [classes[index] for index in scores.argmax(1)]
    assert len(set(predictions)) > 1
    right = [prediction == path.parent.name for prediction, path in zip(predictions, paths, strict=True)]
    return 100 * sum(right) / len(right)


@pytest.mark.parametrize("name", ["last.pth.tar", "model_best.pth.tar"])
def test_accuracy_is_that_of_an_independent_count(validate, images, trained, name):
    result, _ = validate(images, "--checkpoint", trained / name)
    assert result["top1"] == pytest.approx(counted(images, trained / name), abs=1e-3)
    assert 0 < result["top1"] < 100
    # Three classes: the right one is always among five.
    assert result["top5"] == 100


def test_accuracy_is_that_of_the_summary_of(validate, images, trained, summary_of):
    rows = summary_of(trained)
    last, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    assert last["top1"] == pytest.approx(rows[-1]["eval_top1"], abs=1e-3)
    average, lines = validate(images, "--checkpoint", trained / "last.pth.tar", "--use-ema")
    assert average["top1"] == pytest.approx(rows[-1]["eval_ema_top1"], abs=1e-3)
    assert average["top1"] == pytest.approx(counted(images, trained / "last.pth.tar", "state_dict_ema"), abs=1e-3)
    assert lines[1].startswith("Loaded state_dict_ema from checkpoint")


def test_best_accuracy_is_that_of_the_summary_of(validate, images, trained, summary_of):
    rows = summary_of(trained)
    best = torch.load(trained / "model_best.pth.tar", weights_only=True)
    flags = ["--use-ema"] if best["metric_weights"] == "state_dict_ema" else []
    result, _ = validate(images, "--checkpoint", trained / "model_best.pth.tar", *flags)
    assert result["top1"] == pytest.approx(
        max(row[name] for row in rows for name in ("eval_top1", "eval_ema_top1")), abs=1e-3
    )


@pytest.mark.parametrize("batch", [1, 4, 27, 128])
def test_batches_do_not_matter(validate, images, trained, batch, summary_of):
    expected = summary_of(trained)[-1]["eval_top1"]
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(validate, images, trained, dtype):
    expected, _ = validate(images, "--checkpoint", trained / "last.pth.tar")
    result, lines = validate(images, "--checkpoint", trained / "last.pth.tar", "--amp", "--amp-dtype", dtype)
    assert lines[0] == f"Validating in mixed precision ({dtype})..."
    # A few of 27 images may fall on the other side.
    assert result["top1"] == pytest.approx(expected["top1"], abs=12)


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


def test_evaluate_under_autocast():
    model = Scores()
    metrics = evaluate({"": model}, [(torch.eye(2), torch.arange(2))] * 2, torch.autocast("cpu", torch.bfloat16))[""]
    assert model.modes == ((False, False, True),) * 2
    assert metrics.top1 == 100
    assert not torch.is_autocast_enabled("cpu")
