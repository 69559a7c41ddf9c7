"""ONNX files: written with standard operators alone, compared with ONNX Runtime, and read as data."""

import io
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ...errors import InputError, explain, is_out_of_memory, quiet, require
from .program import Run

__all__ = ["load_onnx", "save_onnx"]

_STANDARD = {"", "ai.onnx"}


def save_onnx(
    program: ExportedProgram,
    path: Path,
    entries: Mapping[str, str],
    inputs: list[str] | None,
    outputs: list[str] | None,
) -> None:
    """Write a program as ONNX with standard operators and weights inside.

    Args:
        program: the program.
        path: where to write.
        entries: the metadata.
        inputs: names of the inputs; None takes those of the arguments.
        outputs: likewise of the outputs.

    Raises:
        InputError: a package is missing, or ONNX has no translation of an operator, which the message names.
    """
    require("onnx", "onnxscript", "onnxruntime")
    try:
        # The exporter prints its progress.
        with warnings.catch_warnings(), quiet("torch.onnx", "onnxscript", "onnx_ir"), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported: Any = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=inputs, output_names=outputs
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(_without_translation(error)) from error
    exported.model.metadata_props.update(entries)
    others = {domain for domain in exported.model.opset_imports if domain not in _STANDARD}
    used = sorted({f"{node.domain}.{node.op_type}" for node in exported.model.graph if node.domain in others})
    if used:
        raise InputError(f"the operator {used[0]} cannot be exported, it is none of ONNX's own: replace the module")
    with explain(f"cannot write {path}"):
        exported.save(path, external_data=False)


def _without_translation(error: BaseException) -> str:
    """Return a line that names the operator without a translation."""
    texts, each = [], error
    while each is not None:
        texts.append(str(each))
        following = each.__cause__ or each.__context__
        if following is None:
            break
        each = following
    for text in reversed(texts):
        match = re.search(r"OpOverload\(op='([\w.:]+)'", text)
        if match:
            return f"the operator {match[1]} cannot be exported to ONNX: replace the module, or write a .pt2"
    line = texts[-1].strip().partition("\n")[0]
    return f"cannot export to ONNX: {line:.300}"


def load_onnx(path: Path, device: torch.device | None = None) -> tuple[Run, dict[str, str]]:
    """Load an ONNX file, whose author may be a stranger, for ONNX Runtime.

    Args:
        path: the file.
        device: where to run; a GPU needs ONNX Runtime's package for it.

    Returns:
        What runs it, on and to tensors of PyTorch, and its metadata.

    Raises:
        InputError: the file is no ONNX file, names other files, or has operators that are none of ONNX's own.
    """
    require("onnx", "onnxruntime")
    import onnx
    import onnxruntime

    with explain(f"{path} is no ONNX file, or damaged", "; export it again"):
        model = onnx.load(path, load_external_data=False)
    _check_graph(model.graph, path)
    for function in model.functions:
        raise InputError(f"{path} has the function {function.name[:80]!r}: write it with flashkat export")
    names = ["CPUExecutionProvider"]
    if device is not None and device.type == "cuda":
        names.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    with explain(f"cannot load {path}"), redirect_stderr(io.StringIO()):
        available = [name for name in names if name in onnxruntime.get_available_providers()]
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=available)
    inputs = [each.name for each in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        given = {name: tensor.cpu().numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _check_graph(graph: Any, path: Path) -> None:
    """Raise InputError where a graph, or one within it, names a file or an operator that is none of ONNX's own."""
    import onnx

    tensors = [*graph.initializer]
    tensors += [part for each in graph.sparse_initializer for part in (each.values, each.indices)]
    for node in graph.node:
        if node.domain not in _STANDARD:
            raise InputError(
                f"{path} has the operator {node.domain[:80]}.{node.op_type[:80]}, which is none of ONNX's own: "
                "write it with flashkat export"
            )
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    _check_graph(inner, path)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise InputError(f"{path} names other files for its weights, which a file may not: put them into the file")
