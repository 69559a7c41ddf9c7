"""``flashkat fit``: what it prints, writes, draws and refuses, and that its page is true."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashkat import GroupRational, fit
from flashkat.cli.main import main
from flashkat.nn.fitting import Fit
from flashkat.tools.fits.expression import Expression
from flashkat.tools.fits.fit_function import draw_fit, table

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/how-to/functions/fit.md"


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run flashkat fit in an empty folder; the status, and the two outputs."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        try:
            status = main(["fit", *map(str, argv)])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


def rows(text):
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())


def test_a_table_of_errors_tails_and_slopes(command):
    status, out, err = command("gelu")
    assert (status, err) == (0, "")
    assert out == f"{table(fit('gelu'))}\n"
    found = rows(out)
    assert found["gelu on [-3, 3]"] == "m=6, n=4"
    assert found["method"] == "least-squares"
    assert found["largest error"] == "0.00157 at x=-0.795"
    assert re.fullmatch(r"\S+ at x=8, error \S+", found["worst of the right tail"])
    assert found["slope at +infinity"] == "inf"
    assert len(found["numerator"].split()) == 6
    assert len(found["denominator"].split()) == 4


def test_a_coefficient_that_only_rounds_is_shown_as_zero(command):
    """The numerator of an even function has no odd powers, but for rounding."""
    numerator = rows(command("--expr", "x*sin(x)")[1])["numerator"].split()
    assert [value == "0" for value in numerator] == [False, True] * 3
    assert any(abs(value) > 0 for value in fit(Expression("x*sin(x)")).numerator.tolist()[1::2])


def test_a_table_of_what_is_not_known(command):
    found = rows(command("--expr", "log(x)", "--interval", "0.001", "2", "-n", "0")[1])
    assert found["worst of the left tail"].endswith(", error unknown")
    assert found["denominator"] == "1"


def test_flags_reach_the_fit(command):
    flags = ["-m", 5, "-n", 3, "--interval", -2, 4, "--method", "minimax", "--tail-weight", 0.25, "--json"]
    status, out, _ = command("--expr", "x*sin(x)", *flags)
    expected = fit(Expression("x*sin(x)"), 5, 3, (-2, 4), "minimax", tail_weight=0.25)
    assert status == 0
    assert json.loads(out) == json.loads(expected.to_json())


def test_the_file_is_a_start(command, tmp_path):
    status, out, err = command("tanh", "-m", 5, "--output", "tanh.json", "--json")
    assert (status, err) == (0, "Wrote tanh.json\n")
    assert (tmp_path / "tanh.json").read_text() == out
    layer = GroupRational(16, m=5, start=Fit.read("tanh.json"))
    assert torch.equal(layer.numerator[0], fit("tanh", 5).numerator.float())


def test_points_and_their_weights(command, tmp_path):
    x, y, weight = np.arange(12.0), np.arange(12.0) ** 2 % 5, np.arange(12.0) % 3 + 1
    np.savetxt("points.csv", np.stack([x, y, weight], 1), delimiter=",")
    status, out, _ = command("--points", "points.csv", "-m", 4, "-n", 0, "--json", "--plot", "a.png")
    assert status == 0
    assert json.loads(out)["numerator"] == pytest.approx(np.polyfit(x, y, 3, w=weight)[::-1].tolist())
    assert Image.open("a.png").format == "PNG"


@pytest.mark.parametrize(("name", "start"), [("a.PNG", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_pictures(command, tmp_path, name, start):
    assert command("gelu", "-m", 3, "-n", 1, "--plot", name)[0] == 0
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_picture_has_the_function_the_fit_and_the_error():
    found = fit("gelu")
    above, below = draw_fit(found, torch.nn.functional.gelu).axes
    function, fitted = above.lines
    x = torch.tensor(fitted.get_xdata())
    assert (x[0], x[-1]) == (-8, 8)
    np.testing.assert_allclose(function.get_ydata(), torch.nn.functional.gelu(x))
    np.testing.assert_allclose(fitted.get_ydata(), found(x))
    error = np.abs(below.lines[0].get_ydata())
    assert error.max() == pytest.approx(found.largest_error, rel=1e-2)
    assert np.abs(below.lines[0].get_xdata()).max() <= 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give one of a function's name, --expr EXPRESSION and --points FILE"),
        (["gelu", "--expr", "x"], "give one of"),
        (["gleu"], "no function is called 'gleu': did you mean 'gelu'?"),
        (["GELU"], "did you mean 'gelu'?"),
        (["x*sin(x)"], "no function is called 'x*sin(x)': give a formula with --expr"),
        (["--expr", "x^2"], "write x**2"),
        (["--expr", ""], "is no formula"),
        (["--expr", "1/x"], "1 / x is not finite at x=0"),
        (["--expr", "exp(99*x*x)"], "is not finite at x=-3"),
        (["--points", "nowhere.csv"], "cannot read nowhere.csv"),
        (["gelu", "--interval", "3", "-3"], "low < high"),
        (["gelu", "--max-error", "1e-4"], "largest error for gelu is 0.0016, at x=-0.795, more than --max-error 0.000"),
        (["gelu", "--plot", "a.gif"], "cannot draw to a.gif: give a name that ends in .png"),
        (["gelu", "--plot", "no/a.png"], "no folder no to write a.png to"),
        (["gelu", "--output", "."], "it is a folder"),
        (["gelu", "--output", "a.png", "--plot", "./a.png"], "--output and --plot both name a.png: give another name"),
        (["--plot", "gelu"], "give one of"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(command, tmp_path, argv, words):
    status, out, err = command(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("flashkat fit: error: ")
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_fit_is_overwritten_and_no_other_file(command, tmp_path):
    for _ in range(2):
        assert command("gelu", "--output", "gelu.json")[0] == 0
    (tmp_path / "points.csv").write_text("x,y\n")
    status, _, err = command("gelu", "--output", "points.csv")
    assert status == 2
    assert "points.csv is there already and another kind of file: give another name" in err
    assert (tmp_path / "points.csv").read_text() == "x,y\n"


def test_the_commands_of_the_page_run_and_print_what_it_shows(command, tmp_path):
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shown, printed = [], []
    for kind, text in blocks:
        if kind == "text":
            shown.append(text)
        elif kind == "sh" and not text.startswith("flashkat"):
            subprocess.run(["bash", "-ec", text], check=True, cwd=tmp_path)
        elif kind == "sh":
            for line in text.splitlines():
                words = shlex.split(line)
                assert words[:2] == ["flashkat", "fit"]
                status, out, err = command(*words[2:])
                assert status == 0, err
                printed.append(out)
    assert len(printed) > 4
    # The last two rows are coefficients, whose smallest are rounding.
    assert [text.splitlines()[:-2] for text in shown] == [printed[0].splitlines()[:-2]]
    assert {"fit.png", "gelu.json", "measured.json"} <= {path.name for path in tmp_path.iterdir()}
