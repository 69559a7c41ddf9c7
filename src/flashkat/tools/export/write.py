"""Write a model as a program for other runtimes, by the suffix of the file: ``flashkat export`` and its function."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...checkpoints.load import notes_on_average
from ...errors import InputError, require
from ...evaluation import Config
from ...system.device import resolve_device
from ...system.files import check_writable, replaced
from .description import Description, describe
from .onnx_file import load_onnx, save_onnx
from .program import capture, difference, load_package, save_compiled, save_program
from .restored import restored

__all__ = ["export", "export_checkpoint", "is_program"]

_COMPILED = "_aoti.pt2"
_SUFFIXES = (".onnx", ".pt2")
# Largest difference from the model, relative to its largest finite output, or to 1 where that is smaller.
_TOLERANCES = {torch.float16: 0.05, torch.bfloat16: 0.2}
_TOLERANCE = 1e-3


def is_program(path: str) -> bool:
    """Return whether the suffix of a file is that of a program, and not of weights."""
    return path.endswith(_SUFFIXES)


def export(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write a model as a program that runs without this package.

    The suffix of ``path`` decides: ``.onnx`` for ONNX Runtime and others, ``_aoti.pt2`` for an AOTInductor package,
    any other ``.pt2`` for ``torch.export.load``. The batch may have any size. Our operators become PyTorch's own, or
    ONNX's standard ones. The written file is run and compared with the model.

    Args:
        model: any module, with or without our operators. It is exported in evaluation mode, and stays as it is.
        example: its input, or a sequence of them. Their first dimension is the batch.
        path: the file to write.
        metadata: texts by name, which travel in the file.

    Returns:
        The largest difference of an output from the model's, over random inputs.

    Raises:
        InputError: the suffix is unknown, a package is missing, or the model cannot be exported. The message names an
            operator that cannot.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    return _write(model, inputs, Path(path), dict(metadata or {}))


def _write(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    entries: dict[str, str],
    names: tuple[list[str], list[str]] | None = None,
) -> float:
    if not is_program(path.name):
        raise InputError(f"cannot export to {path}: give a name that ends in {', '.join((*_SUFFIXES, _COMPILED))}")
    check_writable(path)
    if path.suffix == ".onnx":
        require("onnx", "onnxscript", "onnxruntime")
    program = capture(model, inputs)
    with replaced(path) as partial:
        if path.suffix == ".onnx":
            save_onnx(program, partial, entries, *(names or (None, None)))
            run = load_onnx(partial)[0]
        else:
            is_compiled = path.name.endswith(_COMPILED)
            (save_compiled if is_compiled else save_program)(program, partial, entries)
            run = load_package(partial, is_compiled)
        worst, largest = difference(model, run, inputs)
        allowed = _TOLERANCES.get(inputs[0].dtype, _TOLERANCE) * max(1.0, largest)
        if not worst <= allowed:
            raise InputError(
                f"{path} was not written: its outputs differ from the model's by {worst:.2g}, more than {allowed:.2g}; "
                "try another format"
            )
    return worst


def export_checkpoint(config: Config, output: str, say: Callable[[str], None] = lambda line: None) -> tuple[float, int]:
    """Write the model of a checkpoint as a program, with its class names and the preparation of its images.

    Args:
        config: ``trained`` names the checkpoint, ``runtime.model_dtype`` the dtype of the program.
        output: the file to write, see :func:`export`.
        say: called with each line for the user.

    Returns:
        The largest difference of an output, see :func:`export`, and the number of class names.

    Raises:
        InputError: the checkpoint cannot be read, or the model cannot be exported.
    """
    found = restored(config, say)
    for note in notes_on_average(found.checkpoint, config.trained.use_ema):
        say(note)
    for name, weight in found.module.state_dict().items():
        if not weight.isfinite().all():
            file = config.trained.checkpoint or found.name
            raise InputError(f"{file} has weights that are not finite ({name}): take an earlier checkpoint")
    dtype = config.runtime.model_dtype or "float32"
    if dtype == "bfloat16" and output.endswith(".onnx"):
        raise InputError(f"cannot export {output} in bfloat16, which ONNX Runtime lacks: give float16, or a .pt2 file")
    description: Description = describe(found, dtype)
    path = Path(output)
    is_compiled = path.name.endswith(_COMPILED)
    device = resolve_device(config.runtime.device) if is_compiled and config.runtime.device else torch.device("cpu")
    model = found.module.to(device, getattr(torch, dtype))
    images = torch.zeros(2, *description.input_size, device=device, dtype=getattr(torch, dtype))
    worst = _write(model, (images,), path, description.entries(), (["images"], ["logits"]))
    return worst, len(description.classes)
