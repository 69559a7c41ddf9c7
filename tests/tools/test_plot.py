import numpy as np
import pytest
import torch
from PIL import Image
from tiny import stirred

from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.models.create import create_model
from flashkat.tools import plot as plot_module
from flashkat.tools.plot import draw_rationals

MODEL = "kat_tiny_patch16_224"
KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "den_groups": 4}


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = stirred(create_model(MODEL, img_size=8, num_classes=2, **KWARGS))
    path = tmp_path / "run" / "last.pth.tar"
    path.parent.mkdir()
    args = {"model_kwargs": KWARGS, "img_size": 8, "num_classes": 2}
    checkpoints.write(path, {"arch": MODEL, "args": args, "epoch": 6, "state_dict": model.state_dict()})
    return path


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / "images" / "val" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def plot(*argv):
    return main(["plot", *(str(argument) for argument in argv)])


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_picture_beside_the_checkpoint(checkpoint, capsys):
    assert plot(checkpoint) == 0
    picture = checkpoint.with_name("rationals.png")
    assert capsys.readouterr().out == f"The rationals are drawn in {picture}\n"
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert {path.name for path in checkpoint.parent.iterdir()} == {"last.pth.tar", "rationals.png"}


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("b.PNG", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_formats(checkpoint, tmp_path, name, start):
    assert plot(checkpoint, "-o", tmp_path / name) == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith(start)
    if name.endswith("svg"):
        assert b"<svg" in content
        assert content.rstrip().endswith(b"</svg>")


@pytest.fixture
def drawn(monkeypatch):
    """Record what the command draws: models, ranges, titles and figures."""
    calls = []

    def draw(model, ranges=None, title=""):
        calls.append({"model": model, "ranges": ranges, "title": title, "figure": draw_rationals(model, ranges, title)})
        return calls[-1]["figure"]

    monkeypatch.setattr(plot_module, "draw_rationals", draw)
    return calls


def test_default_ranges_and_title(checkpoint, drawn):
    assert plot(checkpoint) == 0
    (call,) = drawn
    assert call["title"] == f"{MODEL}: learned rationals after epoch 7"
    assert call["title"] in call["figure"].get_suptitle()
    assert len(call["figure"].axes) == 4
    for axes in call["figure"].axes:
        for line in axes.lines:
            assert line.get_xdata()[[0, -1]].tolist() == [-3, 3]
    # The model has the checkpoint's coefficients.
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in call["model"].state_dict().items())


def test_ranges_of_data(checkpoint, images, drawn):
    assert plot(checkpoint, "--data", images, "-j", 0) == 0
    assert plot(checkpoint, "--data", images / "val", "-j", 0, "-b", 2) == 0
    first, second = drawn
    assert len(first["ranges"]) == 4
    for name, axes in ((axes.get_title(), axes) for axes in first["figure"].axes):
        low, high = first["ranges"][name]
        assert low < high
        assert (low, high) != (-3, 3)
        for line in axes.lines:
            assert line.get_xdata()[[0, -1]].tolist() == pytest.approx([low, high])
        # The same images in smaller batches.
        assert second["ranges"][name] == pytest.approx((low, high), rel=1e-3, abs=1e-3)


def test_weights_of_a_named_model(checkpoint, tmp_path, drawn):
    torch.save(torch.load(checkpoint, weights_only=True)["state_dict"], tmp_path / "weights.pth")
    kwargs = [f"{key}={value}" for key, value in KWARGS.items()]
    flags = ["--model", MODEL, "--img-size", 8, "--model-kwargs", *kwargs]
    assert plot(tmp_path / "weights.pth", *flags) == 0
    assert drawn[0]["title"] == f"{MODEL}: learned rationals"
    assert (tmp_path / "rationals.png").exists()


def test_averaged_weights(checkpoint, drawn):
    saved = torch.load(checkpoint, weights_only=True)
    average = {name: value * 0.5 for name, value in saved["state_dict"].items()}
    checkpoints.write(checkpoint, {**saved, "state_dict_ema": average})
    assert plot(checkpoint, "--use-ema") == 0
    assert all(torch.equal(value, average[name]) for name, value in drawn[0]["model"].state_dict().items())


def test_says_that_averaged_weights_were_better(checkpoint, capsys):
    checkpoints.write(checkpoint, {**torch.load(checkpoint, weights_only=True), "metric_weights": "state_dict_ema"})
    assert plot(checkpoint) == 0
    assert "the averaged ones were better: --use-ema takes those" in capsys.readouterr().err


def test_a_name_of_an_animation_is_refused_with_a_hint(checkpoint, tmp_path, capsys):
    assert plot(checkpoint, "-o", tmp_path / "picture.gif") == 2
    assert "a name that ends in .png, .svg, .pdf, or add --animate" in capsys.readouterr().err
    assert plot(checkpoint, "-o", tmp_path / "picture.jpg") == 2
    assert "--animate" not in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(checkpoint, tmp_path, capsys, monkeypatch):
    def refuse(self, path, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)
    assert plot(checkpoint, "-o", tmp_path / "picture.png") == 2
    assert f"cannot write {tmp_path / 'picture.png'}: No space left on device" in capsys.readouterr().err
