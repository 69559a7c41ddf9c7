"""Shared set-up: Triton runs interpreted where there is no GPU; tests marked ``gpu`` are skipped there."""

import os

# Several test processes share the cores; threads that wait for each other across processes slow all of them down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

if not torch.cuda.is_available():
    # Read when triton is first imported, which timm and flashkat do.
    os.environ["TRITON_INTERPRET"] = "1"

import csv
import dataclasses
import importlib.util

import pytest
from hypothesis import HealthCheck, settings
from tiny import FLAGS, write_images

HAS_GPU = torch.cuda.is_available()

settings.register_profile(
    "default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")


def pytest_sessionfinish():
    """End loader processes that tests have stopped. Python would wait for them for ever, and they would stay."""
    from flashkat.system.interrupts import end_children

    end_children()


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
        if item.get_closest_marker("slow") and "slow" not in config.getoption("markexpr"):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
        if item.get_closest_marker("slow") and config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session", autouse=True)
def compiled_where_asked_for():
    """Let training choose as on a CPU. On a GPU each run would compile for longer than it trains."""
    if not HAS_GPU:
        yield
        return
    from flashkat.system import compile as runtime

    def choose(asked, device, **how):
        return runtime.choose_for_training(asked, torch.device("cpu"), **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashkat.training.run.choose_for_training", choose)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on several threads, by tens where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """Interpret Triton's kernels without the work that has no effect, which is most of the time."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    # Without debug, nothing asserts what is computed about overflows of integers.
    builder = interpreter.interpreter_builder
    options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    patch_language, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch_once(function):
        """Patch the language once a launch for each module, not again in each call of a device function."""
        module = id(function.__globals__)
        if module in patched:
            return None
        patched.add(module)
        return patch_language(function)

    def launch_anew(*args, **kwargs):
        patched.clear()  # the end of the last launch restored the language
        return launch(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "options", options)
        patch.setattr(interpreter, "_patch_lang", patch_once)
        patch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
        yield


# --- small runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def curves():
    """For tests that look at the picture."""


@pytest.fixture
def no_curves(request, monkeypatch):
    """Drawing takes longer than training a tiny model."""
    if "curves" not in request.fixturenames:
        monkeypatch.setattr("flashkat.training.outputs.folder.draw_curves", lambda rows, path: None)


@pytest.fixture
def train(tmp_path, images, no_curves):
    """Trains a tiny model by the real command, and returns the folder of the run."""
    from flashkat.cli.main import main

    def run(*flags, data=images, experiment="run"):
        output = tmp_path / "output"
        before = set(output.glob("*"))
        argv = ["train", data, *FLAGS, "-j", 0, "-b", 4, "--output", output, "--experiment", experiment, *flags]
        assert main([str(argument) for argument in argv]) == 0
        (folder,) = set(output.glob("*")) - before
        return folder

    return run


@pytest.fixture(scope="session")
def training_config():
    """The configuration of ``flashkat train`` with the flags given."""
    from configs import config_of

    def parse(*flags):
        return config_of("data", *flags)

    return parse


@pytest.fixture(scope="session")
def summary_of():
    """The rows of a run's summary, as numbers."""

    def read(folder):
        with (folder / "summary.csv").open(newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    return read
