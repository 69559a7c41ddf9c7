"""NVIDIA DALI's decoder against Pillow. It runs where DALI is installed, on a GPU or on a CPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from samples import as_jpeg

from flashkat.data.batched.encoded import Cut, Jpeg, decode_by_pillow
from flashkat.errors import InputError, is_installed

pytestmark = pytest.mark.skipif(not is_installed("nvidia.dali"), reason="NVIDIA DALI is not installed")

SIZE = (48, 56)
# The largest and the mean difference in grey levels. Decoders and resizing round otherwise.
LARGEST, MEAN = 16, 1.0


def jpeg(width, height, mode="RGB"):
    return Jpeg(np.frombuffer(as_jpeg(width, height, mode), dtype=np.uint8), "x.jpg", (width, height))


def decode(decoder, cases):
    jpegs, cuts = zip(*cases, strict=True)
    return decoder.decode(jpegs, np.array([cut.numbers() for cut in cuts]))


def by_pillow(cases):
    return decode_by_pillow(*zip(*cases, strict=True), SIZE)


@pytest.fixture
def decoder(device):
    from flashkat.data.batched.dali import Decoder

    return Decoder(8, SIZE, device, threads=1)


@pytest.fixture
def without_pillow(monkeypatch):
    """Fail where Pillow decodes what DALI could not."""
    monkeypatch.setattr("flashkat.data.batched.dali.decode_by_pillow", None)


CUTS = {
    "whole": ((120, 90), Cut((0, 0, 90, 120), SIZE)),
    "part": ((120, 90), Cut((10, 20, 61, 43), SIZE)),
    "cubic": ((200, 160), Cut((30, 7, 100, 150), SIZE, resampling=Image.Resampling.BICUBIC)),
    "enlarged": ((64, 64), Cut((9, 11, 20, 17), SIZE, resampling=Image.Resampling.BICUBIC)),
    "left to right": ((120, 90), Cut((10, 20, 61, 43), SIZE, flip_x=True)),
    "upside down": ((120, 90), Cut((10, 20, 61, 43), SIZE, flip_y=True)),
    "turned": ((120, 90), Cut((10, 20, 61, 43), SIZE, flip_x=True, flip_y=True)),
    "window": ((120, 90), Cut((0, 0, 90, 120), (60, 80), (5, 13))),
}


def test_cuts_are_near_pillows(decoder, without_pillow):
    cases = [(jpeg(*size), cut) for size, cut in CUTS.values()]
    found, expected = decode(decoder, cases).cpu().int(), by_pillow(cases).int()
    for name, one, other in zip(CUTS, found, expected, strict=True):
        apart = (one - other).abs()
        assert apart.max() <= LARGEST, name
        assert apart.float().mean() <= MEAN, name


def test_grey_images_become_colour(decoder, without_pillow):
    cases = [(jpeg(120, 90, "L"), Cut((0, 0, 90, 120), SIZE))]
    assert (decode(decoder, cases).cpu().int() - by_pillow(cases).int()).abs().max() <= LARGEST


def test_batches_may_be_smaller(decoder, without_pillow):
    cases = [(jpeg(*size), cut) for size, cut in CUTS.values()]
    whole = decode(decoder, cases)
    assert torch.equal(decode(decoder, cases[:3]), whole[:3])
    assert torch.equal(decode(decoder, cases), whole)


def test_a_damaged_image_is_named_and_the_next_batch_is_decoded(decoder):
    good = (jpeg(120, 90), CUTS["part"][1])
    expected = decode(decoder, [good])
    damaged = Jpeg(good[0].data[:500], "dogs/1.jpg", (120, 90))
    with pytest.raises(InputError, match=r"cannot decode the image dogs/1.jpg"):
        decode(decoder, [good, (damaged, good[1])])
    assert torch.equal(decode(decoder, [good]), expected)


def test_threads_decode_beside_each_other(decoder):
    cases = [(jpeg(*size), cut) for size, cut in CUTS.values()]
    whole = decode(decoder, cases)
    damaged = Jpeg(cases[0][0].data[:500], "dogs/1.jpg", (120, 90))
    batches = [cases[:4], [(damaged, cases[0][1])], cases[4:], cases[:1]] * 3
    with ThreadPoolExecutor(2) as threads:
        first, bad, rest, one = (list(found) for found in _by_kind(threads, decoder, batches))
    for number in range(3):
        assert torch.equal(torch.cat([first[number].result(), rest[number].result()]), whole)
        assert torch.equal(one[number].result(), whole[:1])
        assert isinstance(bad[number].exception(), InputError)


def _by_kind(threads, decoder, batches):
    futures = [threads.submit(decode, decoder, batch) for batch in batches]
    return (futures[kind::4] for kind in range(4))
