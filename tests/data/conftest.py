"""Data sets of every kind, of two classes; see samples.py for what they hold."""

import struct
import tarfile

import numpy as np
import pytest
from samples import CLASSES, EXPECTED, add, as_bytes, picture


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Images whose brightness is their number, dark ones below 100."""
    root = tmp_path_factory.mktemp("folder")
    for split, count in (("train", 8), ("validation", 3)):
        for index, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(100 * index + 10 * number).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def archives(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("archives")
    for split, name in (("train", "train"), ("validation", "val")):
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for path in sorted((folder / split).rglob("*.png")):
                archive.add(path, arcname=str(path.relative_to(folder / split)))
    return root


@pytest.fixture(scope="session")
def shards(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for split in ("train", "validation"):
        paths = sorted((folder / split).rglob("*.png"))
        for shard in range(2):
            with tarfile.open(root / f"{split}-{shard:04d}.tar", "w") as archive:
                for number, path in enumerate(paths[shard::2]):
                    add(archive, f"{shard}{number}.png", path.read_bytes())
                    add(archive, f"{shard}{number}.cls", str(CLASSES.index(path.parent.name)).encode())
    return root


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    root = tmp_path_factory.mktemp("mnist")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 20), ("t10k", 10)):
        images = np.repeat(np.arange(count, dtype=np.uint8) * 10, 28 * 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        targets = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + targets.tobytes())
    return root


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """Parquet files with the columns image and label: of images, or of the bytes of files without saying so."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("tables")
    rows = {"image": [{"bytes": as_bytes(picture(level)), "path": None} for level, _ in EXPECTED]}
    rows["label"] = [label for _, label in EXPECTED]
    for name, decode in (("images", True), ("bytes", False)):
        (root / name).mkdir()
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=decode))
        table.to_parquet(root / name / "validation.parquet")
    return root
