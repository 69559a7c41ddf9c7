"""Points (x, y) in a text file, with commas, semicolons, tabs or spaces between the numbers."""

from pathlib import Path

from ...errors import InputError, explain

__all__ = ["read_points"]

# Bytes of a file. The fit says how many points it takes.
_LONGEST = 10**7


def read_points(path: str) -> tuple[list[float], list[float], list[float] | None]:
    """Read x, y and, if there is a third column, weights.

    The first line may be a heading. Blank lines and those that begin with # are left out.

    Args:
        path: of the file.

    Returns:
        x, y and the weights, None without a third column.

    Raises:
        InputError: there is no such file, or a line is none of two or three numbers.
    """
    with explain(f"cannot read {path}"), Path(path).open(encoding="utf-8-sig") as file:
        try:
            text = file.read(_LONGEST + 1)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text in UTF-8: give a CSV with lines of x,y") from error
    if len(text) > _LONGEST:
        raise InputError(f"{path} is too long for a list of points: thin them out")
    rows: list[list[float]] = []
    is_first = True
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            row = _numbers(line)
        except ValueError:
            row = []
        if len(row) not in (2, 3) or (rows and len(row) != len(rows[0])):
            if is_first and not row:
                is_first = False
                continue
            wanted = f"{len(rows[0])} numbers as before" if rows else "x,y or x,y,weight"
            if "," in line and _separator(line) != ",":
                wanted += ", with points for decimal commas"
            raise InputError(f"line {number} of {path} is {line.strip()[:40]!r}: give {wanted}")
        is_first = False
        rows.append(row)
    if not rows:
        raise InputError(f"{path} has no points: give lines of x,y")
    x, y, *weight = (list(column) for column in zip(*rows, strict=True))
    return x, y, weight[0] if weight else None


def _separator(line: str) -> str | None:
    """Return what stands between the numbers of a line: None for spaces. A comma beside others is a decimal comma."""
    return next((each for each in (";", "\t", ",") if each in line.strip()), None)


def _numbers(line: str) -> list[float]:
    return [float(part.strip(' "')) for part in line.strip().split(_separator(line))]
