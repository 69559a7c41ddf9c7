"""The kernels one by one."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from flashkat.data.batched import kernels
from flashkat.data.batched.steps import Operation, as_table


@pytest.fixture
def images(device):
    pixels = np.random.default_rng(2).integers(0, 256, (3, 9, 11, 3)).astype(np.uint8)
    return torch.from_numpy(pixels).to(device)


def _counts(images, operations):
    counts = torch.zeros(3, 3, 256, dtype=torch.int32, device=images.device)
    (steps,) = as_table([[(operation, (1.5,))] for operation in operations]).to(images.device)
    kernels.count_kernel[(3, 2)](images, steps, counts, 99, BLOCK=64)
    return counts, steps


def test_only_what_a_step_needs_is_counted(images):
    counts, _ = _counts(images, [Operation.EQUALIZE, Operation.INVERT, Operation.CONTRAST])
    for channel in range(3):
        assert torch.equal(counts[0, channel], torch.bincount(images[0, ..., channel].flatten(), minlength=256).int())
    assert not counts[1].any()
    assert counts[2].sum(1).tolist() == [99, 0, 0]


def test_tables_are_made_for_operations_on_values_alone(images):
    counts, steps = _counts(images, [Operation.INVERT, Operation.COLOR, Operation.AUTOCONTRAST])
    tables = torch.full((3, 3, 256), 7, dtype=torch.uint8, device=images.device)
    kernels.table_kernel[(3, 3)](steps, counts, tables, 99, enable_fp_fusion=False)
    assert tables[0, 0].tolist() == list(range(255, -1, -1))
    assert (tables[1] == 7).all()
    assert (tables[2, 0].diff().int() >= 0).all()


# In a process of its own, where Triton compiles: in this one it may interpret.
SCRIPT = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from flashkat.data.batched import kernels

steps, counts, tables = {"steps": "*fp64"}, {"counts": "*i32"}, {"tables": "*u8"}
sides = {"HEIGHT": 224, "WIDTH": 224, "RED": 1, "GREEN": 2, "BLUE": 3, "BLOCK": 1024}
cases = [
    (kernels.count_kernel, {"images": "*u8", **steps, **counts, "pixels": "i32"}, {"BLOCK": 1024}),
    (kernels.table_kernel, {**steps, **counts, **tables, "pixels": "i32"}, {}),
    (kernels.table_kernel, {**steps, **counts, **tables}, {"pixels": 1}),
    (kernels.step_kernel, {"images": "*u8", **steps, **tables, "out": "*u8"}, sides),
]
resize = {"LINES": 32, "PLACES": 48, "FIRST": 0, "KEPT": 24, "HEIGHT": 24, "WIDTH": 24}
tile = {"TAPS": 64, "BLOCK": 32, "BLOCK_LINES": 8}
for along_x, rows_first in ((True, True), (True, False), (False, True)):
    order = {"ALONG_X": along_x, "CHOOSES_ORDER": True, "ROWS_FIRST": rows_first}
    signature = {"images": "*u8", "numbers": "*i64", "out": "*u8"}
    cases.append((kernels.resize_kernel, signature, {**resize, **order, **tile}))
found = []
for kernel, signature, constants in cases:
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, constants)
    found.append(triton.compile(source, GPUTarget("cuda", 90, 32), {"enable_fp_fusion": False}).asm["ptx"])
print(json.dumps(found))
"""


def test_kernels_compile_for_gpus_without_fused_multiply_adds(tmp_path):
    """A fused multiply-add rounds once, where Pillow rounds twice."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, timeout=250, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [code for code in json.loads(done.stdout) if re.search(r"\bfma\.rn\.f(32|64)", code)]
