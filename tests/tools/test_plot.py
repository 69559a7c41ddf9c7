import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image
from torch import nn

from flashkat import GRKAN, GroupRational, checkpoints
from flashkat.cli.main import main
from flashkat.compat import FlashKAT_Group, KAT_Group
from flashkat.errors import InputError
from flashkat.models.create import create_model
from flashkat.nn.starts import starting_coefficients
from flashkat.ops import rational_reference
from flashkat.tools import plot as plot_module
from flashkat.tools.plot import draw_rationals, input_ranges

MODEL = "kat_tiny_patch16_224"
KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "den_groups": 4}


def stirred(model):
    """Moves every coefficient, so that groups differ from each other and from where they started."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, GroupRational):
            for table in (module.numerator, module.denominator):
                table.data += 0.3 * torch.randn(table.shape, generator=generator)
    return model


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


def panels(figure):
    """The panels by their title."""
    return {axes.get_title(): axes for axes in figure.axes}


def curves(axes):
    """The lines of the groups, and the one of the start."""
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1
    assert to_rgba(dashed[0].get_color()) == to_rgba("black")
    return [line for line in axes.lines if line is not dashed[0]], dashed[0]


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
    for name, axes in panels(first["figure"]).items():
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


def test_a_picture_that_cannot_be_written(checkpoint, tmp_path, capsys, monkeypatch):
    def refuse(self, path, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)
    assert plot(checkpoint, "-o", tmp_path / "picture.png") == 2
    assert f"cannot write {tmp_path / 'picture.png'}: No space left on device" in capsys.readouterr().err


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("shared", [(True, False), (False, True), (False, False), (True, True)])
def test_a_line_per_group_and_the_start(groups, shared):
    share_numerator, share_denominator = shared
    module = stirred(
        GroupRational(16, groups, share_numerator=share_numerator, share_denominator=share_denominator, start="gelu")
    )
    (axes,) = draw_rationals(nn.Sequential(nn.Linear(3, 16), module)).axes
    assert axes.get_title() == "1"
    lines, start = curves(axes)
    # Where both tables are shared all groups are the same function.
    assert len(lines) in ({1, groups} if all(shared) else {groups})
    for group, line in enumerate(lines):
        x = torch.tensor(line.get_xdata(), dtype=torch.float32)
        channel = group * 16 // groups
        with torch.no_grad():
            expected = module(x[:, None].expand(-1, 16))[:, channel]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-4, atol=1e-4)
    colours = {to_rgba(line.get_color()) for line in lines}
    assert len(colours) == len(lines)
    x = torch.tensor(start.get_xdata())
    a, b = starting_coefficients("gelu", 6, 4)
    np.testing.assert_allclose(start.get_ydata(), rational_reference(x[None], a[None].double(), b[None].double())[0])
    np.testing.assert_allclose(start.get_ydata(), nn.functional.gelu(x), atol=0.02)
    assert "gelu" in start.get_label()


def test_a_start_that_was_fitted_has_its_functions_name():
    figure = draw_rationals(nn.Sequential(GroupRational(8, 2, start=torch.sin)))
    start = curves(figure.axes[0])[1]
    assert start.get_label() == "start: sin"
    x = torch.tensor(start.get_xdata())
    np.testing.assert_allclose(start.get_ydata(), torch.sin(x), atol=0.02)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 24])
def test_a_panel_per_rational(count):
    model = nn.Sequential(*(GroupRational(8, 2, start="identity" if i % 2 else "swish") for i in range(count)))
    figure = draw_rationals(model, title="mine")
    assert [axes.get_title() for axes in figure.axes if axes.lines] == figure_order(count)
    assert len([axes for axes in figure.axes if axes.lines]) == count
    for name, axes in panels(figure).items():
        lines, start = curves(axes)
        assert len(lines) == 2
        assert start.get_label() == ("start: identity" if int(name) % 2 else "start: swish")
    assert figure.get_suptitle().startswith("mine")


def figure_order(count):
    """Axes are kept by rows; where there are two, a pair of layers is a column."""
    names = [str(index) for index in range(count)]
    return names[::2] + names[1::2] if count > 4 and count % 2 == 0 else names


def test_any_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 1), GroupRational(8, 2, dim=1, m=4, n=3, start="tanh"))
            self.mixer = GRKAN(8, 16, den_groups=4)

        def forward(self, x):
            return self.mixer(self.stem(x).mean((2, 3)))

    model = stirred(Net())
    ranges = input_ranges(model, [torch.randn(4, 3, 5, 5)])
    assert ranges.keys() == {"stem.1", "mixer.act1", "mixer.act2"}
    found = panels(draw_rationals(model, ranges))
    assert found.keys() == ranges.keys()
    assert [len(curves(found[name])[0]) for name in ("stem.1", "mixer.act1", "mixer.act2")] == [2, 4, 4]


def test_ranges_for_some():
    model = nn.Sequential(GroupRational(8), GroupRational(8))
    found = panels(draw_rationals(model, {"1": (-0.5, 7.0)}))
    assert found["0"].lines[0].get_xdata()[[0, -1]].tolist() == [-3, 3]
    assert found["1"].lines[0].get_xdata()[[0, -1]].tolist() == [-0.5, 7]


@pytest.mark.parametrize("range_", [(-3, 3), (-1.2e-3, 1.5e-3), (100.1, 100.2), (-1234, 2345)])
def test_numbers_below_a_panel_have_room(range_):
    names = [str(index) for index in range(6)]
    figure = draw_rationals(nn.Sequential(*(GroupRational(16) for _ in names)), dict.fromkeys(names, range_))
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    shown = [each for each in figure.axes[0].get_xticklabels() if low <= each.get_position()[0] <= high]
    boxes = [each.get_window_extent() for each in shown]
    assert len(boxes) >= 3
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_a_range_of_one_point():
    figure = draw_rationals(nn.Sequential(GroupRational(8)), {"0": (0.0, 0.0)})
    assert np.isfinite(figure.axes[0].lines[0].get_ydata()).all()


def test_drawing_changes_nothing():
    model = stirred(nn.Sequential(GroupRational(8)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    open_figures = plt.get_fignums()
    draw_rationals(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    # None is left open in pyplot.
    assert plt.get_fignums() == open_figures


# --- ranges -----------------------------------------------------------------------------------------------------------


def test_ranges_are_quantiles_of_the_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), GroupRational(16), nn.Linear(16, 8), nn.Dropout(0.5), GroupRational(8, 4))
    model.train()
    batches = [torch.randn(200, 4), torch.randn(100, 4) + 5]
    found = input_ranges(model, batches)
    model.eval()
    with torch.no_grad():
        recorded = {
            name: torch.cat([model[: int(name)](batch).flatten() for batch in batches]).double() for name in "14"
        }
    assert found.keys() == recorded.keys()
    for name, values in recorded.items():
        low, high = np.quantile(values.numpy(), [0.001, 0.999])
        assert found[name] == pytest.approx((low, high), rel=1e-4, abs=1e-4)
    # What was hooked is free again.
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_after_an_error():
    model = nn.Sequential(GroupRational(8), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        input_ranges(model, [torch.randn(2, 8)])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_outliers_are_left_out():
    x = torch.zeros(100_000)
    x[:10] = 1e6
    low, high = input_ranges(nn.Sequential(GroupRational(8)), [x.view(-1, 8)])["0"]
    assert (low, high) == (0, 0)


@pytest.mark.parametrize(
    "rows",
    [
        1000,
        200_000,
    ],
)
def test_every_channel_counts(rows):
    x = torch.rand(rows, 8) - 0.5
    x[:, 3] += 100
    low, high = input_ranges(nn.Sequential(GroupRational(8)), [x])["0"]
    assert low == pytest.approx(-0.5, abs=0.1)
    assert high == pytest.approx(100.5, abs=0.1)


def test_many_values_in_half_precision():
    # More than torch's quantile takes, 16 million.
    x = torch.linspace(-1, 1, 2_100_000).repeat(8).view(8, -1).T.to(torch.bfloat16)
    low, high = input_ranges(nn.Sequential(GroupRational(8)), [x])["0"]
    assert (low, high) == pytest.approx((-0.998, 0.998), abs=0.01)
    assert math.isfinite(low)


def test_a_model_without_rationals_says_so():
    with pytest.raises(InputError, match="the model has no rationals to draw"):
        draw_rationals(nn.Sequential(nn.Linear(2, 2), nn.GELU()))


@pytest.mark.parametrize(
    "make",
    [lambda: KAT_Group(4, "gelu", "cpu"), lambda: FlashKAT_Group(16, 1, 4, mode="gelu", device="cpu")],
    ids=["kat", "flashkat"],
)
def test_the_classes_of_others_are_drawn(make):
    model = nn.Sequential(nn.Linear(16, 16), make())
    expected = nn.Sequential(nn.Linear(16, 16), GroupRational(16, 4, start="gelu"))
    (axes,), (same,) = draw_rationals(model).axes, draw_rationals(expected).axes
    assert len(curves(axes)[0]) == 4
    for line, other in zip(axes.lines, same.lines, strict=True):
        np.testing.assert_allclose(line.get_ydata(), other.get_ydata(), rtol=1e-6)
    ranges = input_ranges(model, [torch.ones(2, 16)])
    assert ranges.keys() == {"1"}
