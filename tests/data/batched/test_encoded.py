"""Encoded images: where timm would cut them, and back by Pillow to timm's bits."""

import io
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from samples import as_jpeg
from timm.data import create_transform

from flashkat.data.batched.encoded import (
    CollateEncoded,
    Cut,
    EvaluationCut,
    Jpeg,
    TrainingCut,
    decode_by_pillow,
    read_encoded,
)
from flashkat.data.batched.steps import Recipe, UnsupportedError
from flashkat.errors import InputError

SIZES = [(100, 80), (60, 200), (64, 64), (31, 33)]


def states():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize("interpolation", ["random", "bilinear", "bicubic"])
@pytest.mark.parametrize("flips", [{}, {"hflip": 0.5, "vflip": 0.5}, {"hflip": 0.0, "vflip": 1.0}])
def test_training_cuts_where_timm_does(seeded, interpolation, flips):
    size = (24, 40)
    options = {"is_training": True, "interpolation": interpolation, "color_jitter": 0.4, **flips}
    primary, secondary, _ = create_transform((3, *size), separate=True, **options)
    cut = TrainingCut(primary, Recipe(secondary.transforms))
    for number, (width, height) in enumerate(SIZES * 2):
        file = as_jpeg(width, height)
        seeded(number)
        jpeg, found = cut(read_encoded(io.BytesIO(file), "RGB"))[0]
        after = states()
        seeded(number)
        expected = primary(Image.open(io.BytesIO(file)).convert("RGB"))
        assert torch.equal(decode_by_pillow([jpeg], [found], size)[0], torch.from_numpy(np.asarray(expected).copy()))
        for transform in secondary.transforms:
            transform(expected)
        assert states() == after


@pytest.mark.parametrize("options", [{}, {"crop_pct": 0.5}, {"crop_mode": "squash"}, {"interpolation": "bicubic"}])
def test_evaluation_cuts_where_timm_does(options):
    transform = create_transform((3, 32, 32), use_prefetcher=True, **options)
    cut = EvaluationCut(transform)
    for width, height in SIZES:
        file = as_jpeg(width, height)
        encoded, steps = cut(read_encoded(io.BytesIO(file), "RGB"))
        assert steps == []
        expected = np.asarray(transform(Image.open(io.BytesIO(file)).convert("RGB"))).transpose(1, 2, 0)
        assert np.array_equal(decode_by_pillow(*zip(encoded), (32, 32))[0], expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainingCut(_primary(train_crop_mode="rkrc"), Recipe([])),
        lambda: TrainingCut(_primary(interpolation="lanczos"), Recipe([])),
        lambda: EvaluationCut(create_transform((3, 32, 32), crop_mode="border")),
        lambda: EvaluationCut(create_transform((3, 32, 48))),
        lambda: EvaluationCut(create_transform((3, 32, 32), crop_border_pixels=2)),
        lambda: EvaluationCut(create_transform((3, 32, 32), interpolation="nearest")),
        lambda: EvaluationCut(create_transform((3, 32, 32), crop_pct=1.2)),
        lambda: EvaluationCut(create_transform((3, 32, 32), crop_pct=1.2, crop_mode="squash")),
    ],
)
def test_what_cannot_be_cut_is_refused(make):
    with pytest.raises(UnsupportedError):
        make()


def _primary(**options):
    return create_transform((3, 32, 32), is_training=True, separate=True, **options)[0]


@pytest.mark.parametrize(
    ("mode", "format", "is_encoded"),
    [("RGB", "JPEG", True), ("L", "JPEG", True), ("CMYK", "JPEG", False), ("RGB", "PNG", False)],
)
def test_only_plain_jpegs_stay_encoded(mode, format, is_encoded):
    found = read_encoded(io.BytesIO(as_jpeg(40, 24, mode, format)), "RGB")
    assert isinstance(found, Jpeg) == is_encoded
    assert found.size == (40, 24)


def test_pillow_warns_of_no_large_image(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 24 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(read_encoded(io.BytesIO(as_jpeg(40, 24)), "RGB"), Jpeg)


def test_a_jpeg_that_is_cut_off_is_an_error_where_it_is_read():
    file = as_jpeg(240, 160)
    assert len(file) > 4000
    for length in (len(file) - 2, len(file) // 2):
        with pytest.raises(OSError, match="truncated"):
            read_encoded(io.BytesIO(file[:length]), "RGB")
    assert isinstance(read_encoded(io.BytesIO(file + bytes(100)), "RGB"), Jpeg)


class Sevens:
    def start(self, jpegs, cuts):
        return lambda: torch.full((len(jpegs), 32, 32, 3), 7, dtype=torch.uint8)


def test_a_batch_holds_encoded_and_other_images():
    cut = TrainingCut(_primary(hflip=0), Recipe([]))
    files = [as_jpeg(40, 24), as_jpeg(64, 64, format="PNG"), as_jpeg(32, 48)]
    samples = [(cut(read_encoded(io.BytesIO(file), "RGB")), label) for label, file in enumerate(files)]
    batch, labels = CollateEncoded((32, 32))(samples)
    assert labels.tolist() == [0, 1, 2]
    assert batch.places.tolist() == [0, 2]
    assert batch.others.tolist() == [1]
    assert len(batch.drawn.images) == 1  # no memory for images that are not decoded yet
    assert [(jpeg.size, jpeg.data.tobytes()) for jpeg in batch.encoded()] == [
        ((40, 24), files[0]),
        ((32, 48), files[2]),
    ]
    pytest.importorskip("triton")
    batch.start(Sevens())
    images = batch.to(torch.device("cpu"))
    assert images.shape == (3, 3, 32, 32)
    assert (images[[0, 2]] == 7).all()
    assert torch.equal(images[1].permute(1, 2, 0), torch.from_numpy(samples[1][0][0].copy()))


def test_a_batch_without_jpegs_needs_no_decoder():
    pytest.importorskip("triton")
    image = Image.new("RGB", (32, 32), (1, 2, 3))
    batch, _ = CollateEncoded((32, 32))([((np.asarray(image), []), 0)])
    assert batch.to(torch.device("cpu"))[0, :, 5, 5].tolist() == [1, 2, 3]


def test_a_damaged_image_is_named():
    jpeg = Jpeg(np.frombuffer(as_jpeg(40, 24)[:300], dtype=np.uint8), "dogs/1.jpg", (40, 24))
    with pytest.raises(InputError, match=r"cannot decode the image dogs/1.jpg: replace or remove it"):
        decode_by_pillow([jpeg], [Cut((0, 0, 24, 40), (8, 8))], (8, 8))
