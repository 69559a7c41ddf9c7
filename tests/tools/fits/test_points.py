"""Points in text files."""

import pytest

from flashkat.errors import InputError
from flashkat.tools.fits.points import read_points


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2\n3,4\n", ([1, 3], [2, 4], None)),
        ("x,y\n1,2\n", ([1], [2], None)),
        ("\ufeff# measured\n\nx;y;w\r\n1 ; 2;0.5\r\n-3e1;4;1\r\n", ([1, -30], [2, 4], [0.5, 1])),
        ("1\t2", ([1], [2], None)),
        ("1.0e+00 2.0e+00\n 3   4\n", ([1, 3], [2, 4], None)),
        ('"x","y"\n"1","2"\n', ([1], [2], None)),
        ("1,nan\n", ([1], [pytest.approx(float("nan"), nan_ok=True)], None)),
    ],
)
def test_lines_of_numbers(text, expected, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_points(str(path)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no points: give lines of x,y"),
        ("x,y\n", "has no points"),
        ("x,y\nx,y\n1,2\n", "line 2 of .* is 'x,y': give x,y or x,y,weight"),
        ("1\n2\n", "line 1 of .* is '1': give x,y"),
        ("1,2,3,4\n", "line 1 of "),
        ("1,2\n3,4,5\n", "line 2 of .* is '3,4,5': give 2 numbers as before"),
        ("1,2\n\n3,four\n", "line 3 of .* is '3,four'"),
        ("x;y\n1,5;2,5\n", "line 2 of .* is '1,5;2,5': give x,y or x,y,weight, with points for decimal commas"),
        ("x;y\n2;3,5\n", "line 2 of .* with points for decimal commas"),
        ("x\ty\n1\t2\n2\t3,5\n", "line 3 of .* give 2 numbers as before, with points for decimal commas"),
        ("1,5 2,5\n1,5 2,5\n", "line 2 of"),
        ("1,2\n" * 2_500_001, "too long for a list of points: thin them out"),
    ],
)
def test_other_lines_are_named(text, words, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_points(str(path))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.csv: No such file"):
        read_points(str(tmp_path / "nowhere.csv"))
    with pytest.raises(InputError, match="cannot read"):
        read_points(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="binary is no text in UTF-8: give a CSV"):
        read_points(str(tmp_path / "binary"))
