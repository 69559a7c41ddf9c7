"""A model as a graph of PyTorch's own operators, and the files that hold one: ``.pt2`` and AOTInductor packages."""

import copy
import io
import json
import math
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ...errors import InputError, explain, quiet
from ...ops import DECOMPOSITIONS
from ...system.files import replaced

__all__ = ["Run", "capture", "difference", "load_package", "read_entries", "save_compiled", "save_program", "trials"]

Run = Callable[..., Any]

# The batch sizes that a program is tried with.
_TRIALS = (1, 3)
_OWN = ("aten", "prims", "prim", "higher_order")
_ENTRIES = "flashkat.json"
_MOST_BYTES = 10**8
_LOGGERS = ("torch.export", "torch._export", "torch._inductor", "torch.fx", "torch.utils.cpp_extension")


def capture(model: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """Capture a model, in evaluation mode, as a graph of PyTorch's own operators with a batch of any size.

    Args:
        model: any module. It stays as it is.
        example: its inputs. The first dimension of each is the batch.

    Raises:
        InputError: the model cannot be captured, or holds an operator that is none of PyTorch's.
    """
    if not example or any(each.ndim == 0 or len(each) != len(example[0]) for each in example):
        raise InputError("the example's tensors need a first dimension of one size, the batch: give such tensors")
    if len(example[0]) < 2:  # torch.export takes a size of 1 for a constant
        example = tuple(torch.cat([each[:1], each[:1]]) for each in example)
    model = copy.deepcopy(model).eval()
    shapes = tuple({0: Dim("batch")} for _ in example)
    with explain("cannot export the model"), torch.no_grad(), warnings.catch_warnings(), quiet(*_LOGGERS):
        warnings.simplefilter("ignore")
        program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
        program = program.run_decompositions(dict(DECOMPOSITIONS))
    for name, place in _foreign(program):
        where = f" of the module {place}" if place else ""
        raise InputError(
            f"the operator {name}{where} cannot be exported, it is none of PyTorch's own: replace the module"
        )
    return program


def _foreign(program: ExportedProgram) -> Iterator[tuple[str, str]]:
    """Yield the operators that PyTorch itself does not have, and the modules that call them."""
    for graph in program.graph_module.modules():
        for node in getattr(graph, "graph", torch.fx.Graph()).nodes:
            namespace = getattr(node.target, "namespace", "aten")
            if node.op == "call_function" and namespace not in _OWN:
                stack = list((node.meta.get("nn_module_stack") or {}).values())
                yield str(getattr(node.target, "_name", node.target)), str(stack[-1][0]) if stack else ""


def trials(example: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Yield inputs to try a program with: normal numbers for floats, the example's own values otherwise."""
    generator = torch.Generator().manual_seed(0)
    for size in _TRIALS:
        yield tuple(
            torch.randn(size, *each.shape[1:], generator=generator).to(each)
            if each.is_floating_point()
            else each[[0] * size]
            for each in example
        )


@torch.no_grad()
def difference(model: nn.Module, run: Run, example: tuple[Tensor, ...]) -> tuple[float, float]:
    """Compare a program with its model, for a batch of one and a batch of three.

    Args:
        model: the model.
        run: takes the inputs, and returns the outputs or a list of them.
        example: inputs of the model.

    Returns:
        The largest difference of an output, and the largest finite output.
    """
    was_training = {module: module.training for module in model.modules()}
    worst, largest = 0.0, 0.0
    try:
        model.eval()
        for inputs in trials(example):
            expected, found = _tensors(model(*inputs)), _tensors(run(*inputs))
            for one, other in zip(expected, found, strict=True):
                one, other = one.detach().double().cpu(), torch.as_tensor(other).double().cpu()
                # Where both are the same infinity or NaN there is no difference.
                same = (one == other) | (one.isnan() & other.isnan())
                apart = (one - other).abs().nan_to_num(nan=math.inf, posinf=math.inf)
                worst = max(worst, float(torch.where(same, 0.0, apart).amax()))
                # An infinite output would allow any difference.
                largest = max(largest, float(torch.where(one.isfinite(), one.abs(), 0.0).amax()))
    finally:
        for module, mode in was_training.items():
            module.training = mode
    return worst, largest


def _tensors(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [each for item in outputs for each in _tensors(item)] if isinstance(outputs, (tuple, list)) else [outputs]


def save_program(program: ExportedProgram, path: Path, entries: Mapping[str, str]) -> None:
    """Write a program for ``torch.export.load``, with metadata in the extra file ``flashkat.json``."""
    buffer = io.BytesIO()
    with explain(f"cannot write {path}"), warnings.catch_warnings(), quiet(*_LOGGERS):
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer, extra_files={_ENTRIES: json.dumps(dict(entries))})
        with replaced(path) as partial:
            partial.write_bytes(buffer.getbuffer())


def save_compiled(program: ExportedProgram, path: Path, entries: Mapping[str, str]) -> None:
    """Compile a program for this machine's kind of processor, and write an AOTInductor package.

    It has the metadata that AOTInductor gives to programs in C++ too.
    """
    settings = {"aot_inductor.metadata": dict(entries)} if entries else {}
    with (
        explain(f"cannot compile {path.name}"),
        warnings.catch_warnings(),
        quiet(*_LOGGERS),
        tempfile.TemporaryDirectory() as folder,
    ):
        warnings.simplefilter("ignore")
        package = Path(folder, "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
        with replaced(path) as partial:
            partial.write_bytes(package.read_bytes())


def read_entries(path: Path) -> tuple[dict[str, str], bool]:
    """Read a package's metadata without running anything of it.

    Returns:
        The metadata, and whether it is an AOTInductor package.

    Raises:
        InputError: the file is no package.
    """
    with explain(f"{path} is no exported program, or damaged", "; export it again"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        compiled = [name for name in names if "/data/aotinductor/" in name and name.endswith("_metadata.json")]
        ours = [*compiled, *(name for name in names if name.endswith(f"/extra/{_ENTRIES}"))]
        if ours and archive.getinfo(ours[0]).file_size > _MOST_BYTES:
            raise InputError(f"{path} has more than {_MOST_BYTES:,} bytes of metadata: export it again")
        entries = json.loads(archive.read(ours[0])) if ours else {}
    if not isinstance(entries, dict):
        raise InputError(f"{path} has metadata that flashkat export does not write: export it again")
    return {str(key): value for key, value in entries.items() if isinstance(value, str)}, bool(compiled)


def load_package(path: Path, is_compiled: bool) -> Run:
    """Load a package, which may run code of its author, for the processor that it was exported on.

    Raises:
        InputError: it cannot be loaded.
    """
    with explain(f"cannot load {path}"), warnings.catch_warnings(), quiet(*_LOGGERS):
        warnings.simplefilter("ignore")
        if is_compiled:
            compiled: Run = torch._inductor.aoti_load_package(str(path))
            return compiled
        return torch.export.load(path).module()
