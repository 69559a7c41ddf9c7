"""The random states of a process: seen, set, and kept apart from what should not move them."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["draw_from", "isolated", "random_state", "seed_of", "set_random_state"]


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2^32) for some non-negative numbers; the same numbers give the same seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, and the current GPU's where one is in use.

    Tensors, numbers and None only, for checkpoints that load without running code.
    """
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = numpy
    state = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what :func:`random_state` gave; without a GPU here or there, its part is left out."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def draw_from(seed: int) -> None:
    """Let Python, NumPy, and torch on the CPU draw random numbers from ``seed``."""
    random.seed(seed)
    np.random.seed(seed)
    # Not torch.manual_seed, which sets every GPU too.
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Let Python, NumPy, and torch on the CPU draw from ``seed`` within, and leave their states as they were."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    draw_from(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
