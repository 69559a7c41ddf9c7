"""Export a KAT's weights in the format of another program: ``flashkat export``."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..nn.formats import FORMATS, rational_names, rename_rationals
from .formats import compare, describe
from .io import check_output, read, write_weights
from .load import notes_on_average, weights

__all__ = ["export", "renamed_for"]


def export(
    source: str,
    output: str,
    format: str = "kat",
    use_ema: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Write a checkpoint's weights under the names of another program.

    The tensors keep every bit. The file holds only the state_dict.

    Args:
        source: the checkpoint to read.
        output: the file to write, a ``.pth``, ``.pth.tar``, ``.pt``, ``.bin`` or ``.safetensors``.
        format: a key of :data:`flashkat.nn.formats.FORMATS`.
        use_ema: take the averaged weights.
        say: called with each line for the user.

    Returns:
        The number of tensors.

    Raises:
        InputError: the checkpoint is not a KAT's, does not fit the format, or the output cannot be written.
    """
    path = Path(output)
    check_output(path)
    checkpoint = read(source)
    state = weights(checkpoint, use_ema)
    if path.exists() and path.samefile(source):
        raise InputError(f"{path} is the checkpoint itself: give another name")
    exported = renamed_for(state, format, source)
    write_weights(path, exported)
    for note in notes_on_average(checkpoint, use_ema):
        say(note)
    return len(exported)


def renamed_for(state: Mapping[str, Tensor], format: str, name: str) -> dict[str, Tensor]:
    """Rename a KAT's weights to a format. The tensors stay as they are.

    Args:
        state: a KAT's state_dict in any format.
        format: a key of :data:`flashkat.nn.formats.FORMATS`.
        name: name of the weights, for errors.

    Raises:
        InputError: the format is unknown, the weights are not a KAT's, or the format's code has other numbers of
            coefficients.
    """
    if format not in FORMATS:
        raise InputError(f"no format {format!r}: choose one of {', '.join(FORMATS)}")
    found = rational_names(state)
    if not found:
        raise InputError(f"{name} is of a model without rationals: name a checkpoint of a KAT, or write .onnx or .pt2")
    expected = _coefficients(state, format)
    renamed = rename_rationals(state, expected)
    differences = describe(compare(dict.fromkeys(expected), {key: renamed[key] for key in rational_names(renamed)}))
    if differences:
        raise InputError(f"the rationals of {name} are not whole: {differences}")
    shapes = {key: (role, tuple(renamed[key].shape)) for key, role in expected.items()}
    misfits = {other: [key for key, each in shapes.items() if not _fits(other, *each)] for other in FORMATS}
    if misfits[format]:
        key = misfits[format][0]
        raise InputError(
            f"{format}'s code has no place for {key} {shapes[key][1]} of {name}, it knows {_LIMITS[format]}: "
            f"give --format {' or '.join(other for other, keys in misfits.items() if not keys)}"
        )
    return renamed


_LIMITS = {
    "kat": "one numerator of 6 coefficients and 8 denominators of 4",
    "flashkat": "numerators of 6 coefficients and denominators of 4",
}


def _fits(format: str, role: int, shape: tuple[int, ...]) -> bool:
    if format == "kat":
        return shape == ((1, 6), (8, 4))[role]
    return format != "flashkat" or (len(shape) == 2 and shape[1] == (6, 4)[role])


def _coefficients(names: Iterable[str], format: str) -> dict[str, int]:
    """List the coefficients of the GR-KANs with these names in a format: 0 is a numerator, 1 a denominator."""
    names = list(names)
    mlps = {match[1]: None for name in names if (match := re.match(r"(blocks\.\d+\.mlp)\.", name))}
    mlps |= {name.rpartition(".act")[0]: None for name in rational_names(names)}
    return {
        f"{mlp}.{act}.{table}": role
        for mlp in mlps
        for act in ("act1", "act2")
        for role, table in enumerate(FORMATS[format])
    }
