"""ONNX files hold standard operators and their weights, and those of strangers are data."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import flashkat
from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.tools.export.onnx_file import load_onnx, save_onnx
from flashkat.tools.export.program import capture

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def write_graph(path, *nodes, weights=()):
    value = onnx.helper.make_tensor_value_info
    ends = [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])]
    graph = onnx.helper.make_graph(list(nodes), "g", *ends, list(weights))
    domains = {"", *(node.domain for node in nodes)}
    opsets = [onnx.helper.make_opsetid(domain, 1 if domain else 17) for domain in sorted(domains)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_program_is_standard_and_takes_any_batch(shipped):
    model = onnx.load(shipped.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    (given,), (result,) = model.graph.input, model.graph.output
    assert (given.name, result.name) == ("images", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param
    assert [size.dim_value for size in given.type.tensor_type.shape.dim[1:]] == [3, 8, 8]
    session = onnxruntime.InferenceSession(shipped.onnx)
    assert session.run(None, {"images": np.zeros((7, 3, 8, 8), np.float32)})[0].shape == (7, 2)


def test_all_that_images_need_travels_in_the_file(shipped):
    run, entries = load_onnx(shipped.onnx)
    assert json.loads(entries["classes"]) == ["dark", "light"]
    assert json.loads(entries["mean"]) == [0.5, 0.4, 0.3]
    assert {"std", "crop_pct", "crop_mode", "interpolation", "input_size"} <= entries.keys()
    assert run(torch.zeros(2, 3, 8, 8))[0].shape == (2, 2)


def test_an_operator_without_a_translation_is_named(tmp_path):
    class Eigen(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    with pytest.raises(InputError, match=r"the operator aten.linalg_eig cannot be exported to ONNX"):
        save_onnx(capture(Eigen(), (torch.randn(2, 3, 3),)), tmp_path / "a.onnx", {}, None, None)
    assert not (tmp_path / "a.onnx").exists()


def test_a_file_may_not_name_other_files(tmp_path):
    weights = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    onnx.external_data_helper.set_external_data(weights, location="secret")
    weights.ClearField("raw_data")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    with pytest.raises(InputError, match="names other files for its weights"):
        load_onnx(write_graph(tmp_path / "a.onnx", node, weights=[weights]))


def test_a_file_may_not_have_other_operators(tmp_path):
    node = onnx.helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    with pytest.raises(InputError, match=r"has the operator com\.microsoft\.Gelu, which is none of ONNX's own"):
        load_onnx(write_graph(tmp_path / "a.onnx", node))


def test_graphs_within_graphs_are_looked_at(tmp_path):
    odd = onnx.helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft")
    inner = onnx.helper.make_graph([odd], "inner", [], [onnx.helper.make_tensor_value_info("z", 1, ["n", 2])])
    true = onnx.numpy_helper.from_array(np.array(True), "c")
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(InputError, match=r"com\.microsoft\.Gelu"):
        load_onnx(write_graph(tmp_path / "a.onnx", node, weights=[true]))


@pytest.mark.parametrize("content", [b"", b"not ONNX at all", b"\x08\x07" * 50])
def test_a_file_that_is_no_onnx(content, tmp_path):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.onnx"):
        load_onnx(tmp_path / "a.onnx")


@pytest.mark.slow
def test_half_precision(shipped, tmp_path, capsys):
    path = tmp_path / "half.onnx"
    assert main(["export", str(shipped.checkpoint), "-o", str(path), "--model-dtype", "float16"]) == 0
    assert "Largest difference of an output from the model's: " in capsys.readouterr().out
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    run, entries = load_onnx(path)
    assert json.loads(entries["dtype"]) == "float16"
    assert run(torch.zeros(1, 3, 8, 8, dtype=torch.float16))[0].dtype == torch.float16


def test_packages_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("flashkat.errors.is_installed", lambda name: name != "onnxscript")
    with pytest.raises(InputError, match="onnxscript not installed: pip install onnxscript"):
        flashkat.export(nn.Flatten(), torch.ones(2, 3), tmp_path / "a.onnx")


def test_a_file_that_is_no_onnx_file(tmp_path):
    (tmp_path / "a.onnx").write_text("garbage")
    with pytest.raises(InputError, match=r"is no ONNX file, or damaged: .*; export it again$"):
        load_onnx(tmp_path / "a.onnx")
