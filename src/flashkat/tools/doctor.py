"""Report the installed versions, and which path the operator takes on each device: ``flashkat doctor``."""

import importlib
import importlib.metadata
import platform
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .. import __version__
from ..ops import rational, rational_reference
from ..ops.dispatch import choose_path

__all__ = ["report"]

_PACKAGES = ("torch", "triton", "timm", "torchvision", "scipy", "matplotlib", "rich", "scikit-learn")


def report() -> str:
    """Describe this installation in one screen of text."""
    lines = [
        f"flashkat {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}",
        "",
    ]
    lines += ["packages"] + [f"  {name:<13} {_version(name)}" for name in _PACKAGES]
    lines += ["", "devices, and the path that flashkat.rational takes on each"]
    for device in _devices():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = choose_path(device)
        lines += [
            f"  {device!s:<13} {_describe(device)}",
            f"  {'':<13} {path.name}: {path.reason}",
            f"  {'':<13} {_try(device)}",
        ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[torch.device]:
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return devices


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"compute capability {properties.major}.{properties.minor}"
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return "Apple GPU"


def _try(device: torch.device) -> str:
    """Run the operator forward and backward on the device, and compare it with its definition in float64."""
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(shape, generator=generator) for shape in ((64, 32), (1, 6), (8, 4)))
    expected = _value_and_gradients(rational_reference, *(tensor.double() for tensor in (x, a, b)))
    try:
        found = _value_and_gradients(rational, *(tensor.to(device) for tensor in (x, a, b)))
    except Exception as error:  # the report has to show any failure
        return f"does not work: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    distance = max(float((f.cpu().double() - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True))
    return f"{'works' if distance < 1e-5 else 'WRONG'}: within {distance:.0e} of float64, forward and gradients"


def _value_and_gradients(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, a: Tensor, b: Tensor
) -> list[Tensor]:
    leaves = [tensor.requires_grad_() for tensor in (x, a, b)]
    value = function(x, a, b)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]
