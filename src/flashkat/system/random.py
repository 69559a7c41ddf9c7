"""Read, set and isolate the random states of a process."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["draw_from", "isolated", "random_state", "seed_of", "set_random_state"]


def seed_of(*numbers: int) -> int:
    """Return a seed in [0, 2^32) that depends on non-negative numbers alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, and of the current GPU's if one is in use.

    The state holds tensors, numbers and None only, for checkpoints that load without running code.
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
    """Set a state that :func:`random_state` returned. A GPU's state is ignored if none is in use."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def draw_from(seed: int) -> None:
    """Seed the generators of Python, NumPy, and torch on the CPU."""
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would seed every GPU too.
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy, and torch on the CPU, and restore their states at the context's end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    draw_from(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
