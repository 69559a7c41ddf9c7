"""Which device it is, and how numbers are multiplied there."""

import os
import warnings

import pytest
import torch

from flashkat.errors import InputError
from flashkat.system.device import resolve_device, training_products

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def precision():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_cuda_has_more_queues_unless_the_environment_says_otherwise(monkeypatch):
    # Set first, so that the fixture restores the environment at the end.
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    resolve_device("cpu")
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    del os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]
    resolve_device("cpu")
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"


def test_default_device_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(None) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:cpu", "xpu"])
def test_device_that_is_not_there(name):
    with pytest.raises(InputError, match=f"no device '{name}' here: .*cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [(GPU, [], ("high", True)), (GPU, ["--no-tf32"], ("highest", False)), (CPU, [], None), (CPU, ["--no-tf32"], None)],
)
def test_products(training_config, device, flags, expected):
    before = precision()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with training_products(training_config(*flags).runtime, device):
            assert precision() == (expected or before)
    assert precision() == before
