"""The key of PyTorch's caches on disk: compiled code is found only by the version that it was compiled from.

PyTorch tells operators apart by name. After an update it would otherwise run the old kernels and launches.
"""

import functools
import hashlib
from pathlib import Path

import torch

__all__ = ["distinguish_caches", "version_of_sources"]


@functools.cache
def distinguish_caches() -> None:
    """Add the version of this package to the key of torch.compile's caches, in this process."""
    config = torch.compiler.config
    config.cache_key_tag = f"{config.cache_key_tag} flashkat-{version_of_sources(Path(__file__).parents[1])}".lstrip()


def version_of_sources(folder: Path) -> str:
    """Return a hash of the Python files below a folder. An edited checkout is another version."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
