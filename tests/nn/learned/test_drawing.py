"""Pictures of learned functions."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from tiny import stirred
from torch import nn

from flashkat import GRKAN, GroupRational
from flashkat.compat import FlashKAT_Group, KAT_Group
from flashkat.errors import InputError
from flashkat.nn.learned.drawing import draw_functions, draw_rationals, pixels, start_of
from flashkat.nn.learned.inputs import input_ranges
from flashkat.nn.learned.rationals import learned
from flashkat.nn.starts import starting_coefficients
from flashkat.ops import rational_reference


def panels(figure):
    """The panels by their title."""
    return {axes.get_title(): axes for axes in figure.axes}


def curves(axes):
    """The lines of the groups, and the one of the start."""
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1
    assert to_rgba(dashed[0].get_color()) == to_rgba("black")
    return [line for line in axes.lines if line is not dashed[0]], dashed[0]


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


def test_functions_of_a_state_are_drawn():
    model = nn.Sequential(GroupRational(8, 2, start="gelu"))
    state = stirred(nn.Sequential(GroupRational(8, 2, start="gelu"))).state_dict()
    (axes,) = draw_functions(learned(model, state)).axes
    lines, _ = curves(axes)
    expected = learned(model, state)["0"](torch.tensor(lines[0].get_xdata()))
    np.testing.assert_allclose(lines[1].get_ydata(), expected[1])


def test_the_start_is_one_function():
    start = start_of(learned(nn.Sequential(GroupRational(8, 4, start="tanh")))["0"])
    x = torch.linspace(-3, 3, 50)
    assert start.groups == 1
    np.testing.assert_allclose(start(x)[0], torch.tanh(x), atol=0.01)


def test_pixels_are_a_picture_of_the_figure():
    figure = draw_rationals(stirred(nn.Sequential(GroupRational(8))))
    image = pixels(figure, dpi=50)
    width, height = figure.get_size_inches()
    assert image.dtype == np.uint8
    assert image.shape == (int(height * 50), int(width * 50), 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
