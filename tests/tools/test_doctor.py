import importlib.metadata
import importlib.util
import sys
import warnings

import pytest
import torch

import flashkat
from flashkat.cli.main import main
from flashkat.ops import dispatch
from flashkat.ops.aten import windows as aten
from flashkat.ops.cpu import native
from flashkat.ops.dispatch import choose_path
from flashkat.tools import doctor

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@pytest.fixture(autouse=True)
def fresh_choice():
    choose_path.cache_clear()
    yield
    choose_path.cache_clear()


# --- the report -------------------------------------------------------------------------------------------------------


def test_report(capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith(f"flashkat {flashkat.__version__}, Python {sys.version.split()[0]}")
    for package in ("torch", "timm", "scipy", "matplotlib"):
        assert f"{package} {importlib.metadata.version(package)}" in lines
    assert any(line.startswith("triton ") for line in lines)
    cpu = next(index for index, line in enumerate(lines) if line.startswith("cpu "))
    path = choose_path(torch.device("cpu"))
    assert lines[cpu + 1] == f"{path.name}: {path.reason}"
    assert lines[cpu + 2].startswith("works: within")
    assert max(map(len, out.splitlines())) <= 120


def test_missing_packages_are_named(monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name):
        if name in ("triton", "rich"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "triton not installed" in lines
    assert "rich not installed" in lines


def test_an_operator_that_raises_is_reported(monkeypatch, capsys):
    def broken(x, a, b):
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(doctor, "rational", broken)
    assert main(["doctor"]) == 0
    assert "does not work: RuntimeError: no kernel image\n" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_an_operator_that_is_wrong_is_reported(monkeypatch, capsys, wrong):
    def off(x, a, b):
        y = flashkat.rational(x, a, b)
        return y * 1.001 if wrong == "value" else y + 0.1 * (b - b.detach()).sum()

    monkeypatch.setattr(doctor, "rational", off)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "WRONG: within" in out
    assert "works" not in out


# --- the choice -------------------------------------------------------------------------------------------------------


def choose(device="cuda:0", times=3):
    """The path, and the warnings of choosing it several times."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paths = [choose_path(torch.device(device)) for _ in range(times)]
    assert all(path is paths[0] for path in paths)
    return paths[0], [str(warning.message) for warning in caught]


@pytest.fixture
def capability(monkeypatch):
    def pretend(value, hip=None):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: value)
        monkeypatch.setattr(torch.version, "hip", hip)

    return pretend


def test_cpu_with_the_library(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: (object(), "native.so"))
    path, caught = choose("cpu")
    assert (path.name, path.implementation) == ("native", native)
    assert "native.so" in path.reason
    assert not caught


def test_cpu_without_the_library(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: (None, "no compiler"))
    path, caught = choose("cpu")
    assert (path.name, path.implementation) == ("aten", aten)
    assert "no compiler" in path.reason
    assert not caught


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_other_than_cuda(device):
    path, caught = choose(device)
    assert path.name == "aten"
    assert path.implementation is aten
    assert device in path.reason
    assert not caught


def test_cuda_without_triton_is_said_once(monkeypatch, capability):
    monkeypatch.setitem(sys.modules, "triton", None)
    capability((9, 0))
    path, caught = choose()
    assert path.name == "aten"
    assert path.implementation is aten
    assert "triton is not installed" in path.reason
    assert len(caught) == 1
    assert path.reason in caught[0]
    assert "cuda:0" in caught[0]


@needs_triton
@pytest.mark.parametrize("value", [(7, 0), (7, 5), (3, 7)])
def test_old_gpus(capability, value):
    capability(value)
    path, caught = choose()
    assert path.name == "aten"
    assert path.implementation is aten
    assert path.reason == f"its compute capability is {value[0]}.{value[1]}, the kernels need 8.0"
    assert len(caught) == 1


@needs_triton
@pytest.mark.parametrize("value", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_gpus(capability, value):
    capability(value)
    path, caught = choose()
    assert path.name == "triton"
    assert path.implementation.__name__ == "flashkat.ops.triton.rational"
    assert not caught


@needs_triton
def test_amd_has_other_numbers(capability):
    capability((6, 0), hip="6.2")
    assert choose()[0].name == "triton"


@needs_triton
def test_every_gpu_is_asked(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device.index else (7, 0))
    assert [choose(f"cuda:{index}")[0].name for index in range(2)] == ["aten", "triton"]


def test_the_report_looks_without_warning(monkeypatch, capability):
    """For a GPU without Triton the reason is in the report, so the warning is suppressed."""
    monkeypatch.setitem(sys.modules, "triton", None)
    capability((9, 0))
    monkeypatch.setattr(doctor, "_devices", lambda: [torch.device("cuda", 0)])
    monkeypatch.setattr(doctor, "_describe", lambda device: "a GPU")
    monkeypatch.setattr(doctor, "_try", lambda device: "tried")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = doctor.report()
    assert "aten: triton is not installed" in text
    assert dispatch.choose_path(torch.device("cuda", 0)).name == "aten"
