"""The paths of the operator that this machine can run, as fixtures."""

import shutil
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from flashkat.ops.aten import windows as aten
from flashkat.ops.cpu import native

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(scope="session")
def native_library():
    """Skips where the compiled library is not there, and fails where it should be."""
    library, reason = native.load()
    if library is None:
        assert sys.platform == "win32" or shutil.which("gcc") is None, f"there is a compiler, but {reason}"
        pytest.skip(reason)


@dataclass(frozen=True)
class PathUnderTest:
    implementation: ModuleType
    device: str
    interpreted: bool = False

    def steps(self, dtype: torch.dtype) -> int:
        """Rounding to the output dtype, in units of its precision: Triton's interpreter truncates to bfloat16."""
        return 2 if self.interpreted and dtype == torch.bfloat16 else 1

    def handles_subnormal(self, dtype: torch.dtype) -> bool:
        """Triton's interpreter does not convert bfloat16 numbers below the normal range; GPUs do."""
        return not (self.interpreted and dtype == torch.bfloat16)


def _paths():
    yield pytest.param(("aten", "cpu"), id="aten-cpu")
    yield pytest.param(("native", "cpu"), id="native-cpu")
    yield pytest.param(("aten", "cuda"), id="aten-gpu", marks=pytest.mark.gpu)
    if not HAS_GPU:
        yield pytest.param(("triton", "cpu"), id="triton-interpreted")
    yield pytest.param(("triton", "cuda"), id="triton-gpu", marks=pytest.mark.gpu)


@pytest.fixture(params=list(_paths()))
def path(request):
    name, device = request.param
    if name == "aten":
        return PathUnderTest(aten, device)
    if name == "native":
        request.getfixturevalue("native_library")
        return PathUnderTest(native, device)
    pytest.importorskip("triton")
    from flashkat.ops.triton import rational as launch

    return PathUnderTest(launch, device, interpreted=device == "cpu")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def threads():
    """Sets how many threads PyTorch uses, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
