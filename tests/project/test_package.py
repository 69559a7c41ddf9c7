import importlib.metadata
import importlib.resources
import json
import os
import re
import subprocess
import sys

import pytest
import timm

import flashkat
from flashkat.cli.main import main, run

COMMANDS = [
    *("train", "finetune", "validate", "plot", "inspect", "fit", "export", "predict", "flops", "data", "doctor"),
]
# Modules before and after the import of ours.
IMPORTS = """
import json, sys, torch, timm
before = sorted(sys.modules)
import flashkat
print(json.dumps([before, sorted(sys.modules)]))
"""


def start(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def output_of(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_import_brings_in_little_beside_torch_and_timm():
    before, after = map(set, json.loads(output_of(start(IMPORTS))))
    added = after - before
    assert "flashkat" in added
    for name in ("matplotlib", "rich", "sklearn", "scipy", "pandas"):
        assert name not in added
    for name in ("rational", "rational_kernels"):
        assert f"flashkat.ops.triton.{name}" not in added
    for name in ("training", "tools", "evaluation", "data", "cli"):
        assert f"flashkat.{name}" not in added
    # Whatever else there is came with Python, but for what DTensor's registration imports (27 ms of 3.9 s).
    assert {name.partition(".")[0] for name in added} <= {"flashkat", "torch", *sys.stdlib_module_names}


WITHOUT_TRITON = """
import sys, warnings
sys.modules["triton"] = None
import flashkat.ops.triton.settings, flashkat.ops.triton.caching
import torch, timm, flashkat
assert not torch.cuda.is_available()
layer = flashkat.GRKAN(16, 32)
x = torch.randn(4, 16, requires_grad=True)
layer(x).square().sum().backward()
assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
assert torch.isfinite(x.grad).all()
model = timm.create_model("kat_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
from flashkat.cli.main import main
assert main(["doctor"]) == 0
assert "flashkat.ops.triton.rational_kernels" not in sys.modules
"""


def test_works_without_triton_and_without_a_gpu():
    out = output_of(start(WITHOUT_TRITON, CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES=""))
    assert "native: " in out or "aten: " in out
    assert "works: within" in out
    assert "cuda" not in out


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"flashkat {importlib.metadata.version('flashkat')}\n"
    assert flashkat.__version__ == importlib.metadata.version("flashkat")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", flashkat.__version__)


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    listed = re.findall(r"^    (\w+) +\S", out, re.MULTILINE)
    assert listed == COMMANDS


def test_the_command_is_installed():
    (command,) = importlib.metadata.distribution("flashkat").entry_points.select(name="flashkat")
    assert command.group == "console_scripts"
    assert command.load() is run


PAGE = [f"tools/inspect/page.{kind}" for kind in ("html", "css", "js")]


@pytest.mark.parametrize("name", ["py.typed", "nn/starts.json", *PAGE])
def test_data_files_ship(name):
    assert (importlib.resources.files("flashkat") / name).is_file()


def test_public_names():
    for name in flashkat.__all__:
        assert getattr(flashkat, name) is not None
    assert {"GRKAN", "GroupRational", "rational"} <= set(flashkat.__all__)
    assert flashkat.rational.__doc__
    assert flashkat.GroupRational.__doc__
    assert flashkat.GRKAN.__doc__


def test_models_are_registered():
    ours = [name for name in timm.list_models() if name.startswith(("kat_", "flash_kat_"))]
    assert len(ours) == 18
    assert {"kat_tiny_patch16_224", "kat_base_swish_patch16_224", "flash_kat_small_gelu_patch16_224"} <= set(ours)
