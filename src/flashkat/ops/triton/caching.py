"""Compiled code that PyTorch keeps on disk is found only by the version of the operator that it was compiled from.

PyTorch knows an operator by its name. What compilers find in one of ours, kernels and how they are launched, it would
take from before an update, with all of its mistakes.
"""

import functools
import hashlib
from pathlib import Path

import torch

__all__ = ["distinguish_caches", "version_of_sources"]


@functools.cache
def distinguish_caches() -> None:
    """Add this package's version to what torch.compile's caches are searched by, in this process."""
    config = torch.compiler.config
    config.cache_key_tag = f"{config.cache_key_tag} flashkat-{version_of_sources(Path(__file__).parents[1])}".lstrip()


def version_of_sources(folder: Path) -> str:
    """A hash of the Python files below a folder, by which a checkout that was edited is another version too."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
