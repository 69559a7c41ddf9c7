"""NVIDIA DALI's decoder against Pillow. It runs where DALI is installed, on a GPU or on a CPU."""

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


def start(decoder, cases):
    jpegs, cuts = zip(*cases, strict=True)
    return decoder.start(jpegs, np.array([cut.numbers() for cut in cuts]))


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)  # says how far apart they are


def by_pillow(cases):
    return decode_by_pillow(*zip(*cases, strict=True), SIZE)


@pytest.fixture(params=[False, True], ids=["beside", "on the processor"])
def decoder(device, request):
    from flashkat.data.batched.dali import Decoder

    return Decoder(8, SIZE, device, threads=1, is_on_cpu=request.param)


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
    found, expected = start(decoder, cases)().cpu().int(), by_pillow(cases).int()
    for name, one, other in zip(CUTS, found, expected, strict=True):
        apart = (one - other).abs()
        assert apart.max() <= LARGEST, name
        assert apart.float().mean() <= MEAN, name


def test_parts_without_windows_are_the_same(decoder, device):
    from flashkat.data.batched.dali import Decoder

    cases = [(jpeg(*size), cut) for name, (size, cut) in CUTS.items() if name != "window"]
    whole = Decoder(8, SIZE, device, threads=1, has_windows=False, is_on_cpu=decoder._is_on_cpu)
    assert torch.equal(start(whole, cases)(), start(decoder, cases)())


def test_grey_images_become_colour(decoder, without_pillow):
    cases = [(jpeg(120, 90, "L"), Cut((0, 0, 90, 120), SIZE))]
    assert (start(decoder, cases)().cpu().int() - by_pillow(cases).int()).abs().max() <= LARGEST


def test_batches_may_be_smaller(decoder, without_pillow):
    cases = [(jpeg(*size), cut) for size, cut in CUTS.values()]
    whole = start(decoder, cases)()
    assert torch.equal(start(decoder, cases[:3])(), whole[:3])
    assert torch.equal(start(decoder, cases)(), whole)


def test_a_damaged_image_is_named_and_the_next_batch_is_decoded(decoder):
    good = (jpeg(120, 90), CUTS["part"][1])
    expected = start(decoder, [good])()
    damaged = Jpeg(good[0].data[:500], "dogs/1.jpg", (120, 90))
    with pytest.raises(InputError, match=r"cannot decode the image dogs/1.jpg"):
        start(decoder, [good, (damaged, good[1])])()
    assert torch.equal(start(decoder, [good])(), expected)


def test_what_dali_cannot_decode_is_said(decoder, monkeypatch):
    good = (jpeg(120, 90), CUTS["part"][1])
    start(decoder, [good])()
    _fail(decoder, monkeypatch, "Error in thread 3: nvImageCodec failed\nStacktrace: ...")
    with pytest.warns(UserWarning, match="so Pillow does, slowly: Error in thread 3: nvImageCodec failed$"):
        found = start(decoder, [good])()
    assert torch.equal(found.cpu(), by_pillow([good]))


def test_too_little_memory_is_an_error(decoder, monkeypatch):
    good = (jpeg(120, 90), CUTS["part"][1])
    start(decoder, [good])()
    _fail(decoder, monkeypatch, "CUDA runtime api error cudaErrorMemoryAllocation (2): out of memory")
    with pytest.raises(InputError, match=r"no memory left to decode images .* smaller --batch-size"):
        start(decoder, [good])()


def _fail(decoder, monkeypatch, message):
    def outputs(**options):
        raise RuntimeError(message)

    (pipeline,) = decoder._idle
    monkeypatch.setattr(pipeline, "outputs", outputs)


def test_batches_are_decoded_beside_each_other(decoder):
    cases = [(jpeg(*size), cut) for size, cut in CUTS.values()]
    whole = start(decoder, cases)()
    damaged = Jpeg(cases[0][0].data[:500], "dogs/1.jpg", (120, 90))
    started = [start(decoder, each) for each in (cases[:4], [(damaged, cases[0][1])], cases[4:], cases[:1])]
    del started[3]  # nobody asks for it, and its pipeline is used again
    assert len(decoder._idle) == 1
    same(started[0](), whole[:4])
    with pytest.raises(InputError, match=r"cannot decode the image dogs/1.jpg"):
        started[1]()
    same(started[2](), whole[4:])
    same(start(decoder, cases)(), whole)


def test_a_batch_that_was_asked_for_ends_without_touching_the_next(decoder):
    cases = [(jpeg(*size), cut) for size, cut in CUTS.values()]
    first = start(decoder, cases)
    whole = first()
    second = start(decoder, cases)  # in the pipeline of the first
    del first
    same(second(), whole)
