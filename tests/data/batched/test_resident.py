"""A data set in memory: read once, and cut to Pillow's bits."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from samples import args_of, open_dataset
from timm.data import create_transform
from torch.utils.data import get_worker_info

from flashkat.data.batched import resident
from flashkat.data.batched.encoded import EvaluationCut, TrainingCut
from flashkat.data.batched.resident import CollateResident, ResidentImages, Store, read_all
from flashkat.data.batched.steps import Recipe
from flashkat.errors import InputError

COUNT = 8


def _images(height, width, device):
    pixels = np.random.default_rng(height).integers(0, 256, (COUNT, height, width, 3)).astype(np.uint8)
    return torch.from_numpy(pixels).to(device)


def _cut(images, size, cut, seeded):
    """Return the images that a cut makes, one after the other and as a batch."""
    shown = ResidentImages(None, list(range(COUNT)), (images.shape[2], images.shape[1]), cut)
    samples = []
    for number in range(COUNT):
        seeded(number)
        samples.append(shown[number])
    batch, labels = CollateResident()(samples)
    assert labels.tolist() == list(range(COUNT))
    batch.start(Store(images, size))
    return batch.to(images.device).permute(0, 2, 3, 1).cpu()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize(("sides", "size"), [((32, 32), (32, 32)), ((48, 40), (32, 24)), ((9, 20), (40, 40))])
def test_training_images_have_the_bits_of_timms(device, seeded, sides, size, interpolation):
    pytest.importorskip("triton")
    images = _images(*sides, device)
    options = {"interpolation": interpolation, "vflip": 0.5, "scale": (0.05, 1.0)}
    primary = create_transform((3, *size), is_training=True, separate=True, **options)[0]
    found = _cut(images, size, TrainingCut(primary, Recipe([])), seeded)
    for number in range(COUNT):
        seeded(number)
        expected = np.asarray(primary(Image.fromarray(images[number].cpu().numpy())))
        assert np.array_equal(found[number], expected), number


@pytest.mark.parametrize("options", [{}, {"crop_pct": 0.6}, {"crop_mode": "squash", "interpolation": "bicubic"}])
def test_evaluation_images_have_the_bits_of_timms(device, seeded, options):
    pytest.importorskip("triton")
    images = _images(30, 44, device)
    transform = create_transform((3, 24, 24), use_prefetcher=True, **options)
    found = _cut(images, (24, 24), EvaluationCut(transform), seeded)
    for number in range(COUNT):
        expected = np.asarray(transform(Image.fromarray(images[number].cpu().numpy()))).transpose(1, 2, 0)
        assert np.array_equal(found[number], expected), number


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_is_read_whole(folder, workers):
    dataset = open_dataset(args_of(folder), "validation")
    images, labels = read_all(dataset, workers, 60.0)
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20, 100, 110, 120]
    assert labels == [0, 0, 0, 1, 1, 1]


def test_a_process_that_dies_is_explained(folder, monkeypatch):
    dataset = open_dataset(args_of(folder), "validation")
    monkeypatch.setattr(type(dataset), "__getitem__", _die_in_a_worker)
    with pytest.raises(InputError, match=r"loading images stopped: .* try fewer --workers"):
        read_all(dataset, 1, 60.0)


def _die_in_a_worker(dataset, index):
    if get_worker_info() is not None:
        os._exit(1)
    return np.zeros((8, 8, 3), dtype=np.uint8), 0


def test_images_that_differ_in_size_are_not_kept(folder, tmp_path):
    for number, side in enumerate((8, 9)):
        (tmp_path / "train" / "cats").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, side)).save(tmp_path / "train" / "cats" / f"{number}.png")
    assert read_all(open_dataset(args_of(tmp_path), "train"), 0, 0) is None


@pytest.mark.parametrize(("name", "limit"), [("_LONGEST_SIDE", 7), ("_MOST_BYTES", 6 * 8 * 8 * 3 - 1)])
def test_large_data_sets_are_not_kept(folder, monkeypatch, name, limit):
    monkeypatch.setattr(resident, name, limit)
    assert read_all(open_dataset(args_of(folder), "validation"), 0, 0) is None


def test_a_damaged_image_is_named(folder, tmp_path):
    (tmp_path / "train" / "cats").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cats" / "0.png")
    (tmp_path / "train" / "cats" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cats/1\.png"):
        read_all(open_dataset(args_of(tmp_path), "train"), 0, 0)
