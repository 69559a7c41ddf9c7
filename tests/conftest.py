"""Shared set-up: Triton runs interpreted where there is no GPU; tests marked ``gpu`` are skipped there."""

import os

# Several test processes share the cores; threads that wait for each other across processes slow all of them down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Read when triton is first imported, which flashkat puts off until a kernel is needed.
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile(
    "default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def compiled_where_asked_for():
    """Training decides as on a CPU: on a GPU each of many runs would compile first, for longer than it trains."""
    if not HAS_GPU:
        yield
        return
    from flashkat.system import compile as runtime

    def choose(asked, device, **how):
        return runtime.choose_for_training(asked, torch.device("cpu"), **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashkat.training.run.choose_for_training", choose)
        yield


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
