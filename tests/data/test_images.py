"""How pixels of all kinds become 8 bits per channel."""

import warnings

import numpy as np
import pytest
from PIL import Image

from flashkat.cli.main import main
from flashkat.data.augment import check_mode
from flashkat.data.config import Augmentation, Data
from flashkat.data.images import as_mode, image_mode, read_image
from flashkat.errors import InputError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("factor", [256, 257])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_as_their_eight_bit_twin(tmp_path, factor, suffix):
    Image.fromarray(RAMP.astype(np.uint16) * factor).save(tmp_path / f"0.{suffix}")
    with (tmp_path / f"0.{suffix}").open("rb") as file:
        assert np.array_equal(np.asarray(read_image(file, "L")), RAMP)


@pytest.mark.parametrize("factor", [1, 1 / 255, 257])
def test_floats_of_every_usual_range(tmp_path, factor):
    Image.fromarray(RAMP.astype(np.float32) * np.float32(factor)).save(tmp_path / "0.tif")
    with (tmp_path / "0.tif").open("rb") as file:
        assert np.array_equal(np.asarray(read_image(file, "RGB"))[..., 1], RAMP)


def test_whole_numbers_of_32_bits():
    assert np.array_equal(np.asarray(as_mode(Image.fromarray(RAMP.astype(np.int32) * 257), "L")), RAMP)
    assert np.array_equal(np.asarray(as_mode(Image.fromarray(RAMP.astype(np.int32)), "L")), RAMP)
    assert np.asarray(as_mode(Image.fromarray(np.full((2, 2), -5, np.int32)), "L")).max() == 0
    for pixels in (np.full((2, 2), 70000, np.int32), np.full((2, 2), np.inf, np.float32)):
        with pytest.raises(ValueError, match="more than 16 bits hold"):
            as_mode(Image.fromarray(pixels), "L")


@pytest.mark.parametrize(("suffix", "expected"), [("tif", 200), ("pgm", 0)])
def test_dark_files_of_32_bits(tmp_path, suffix, expected):
    """Pillow opens a .pgm of 16 bits with 32."""
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / f"0.{suffix}")
    with (tmp_path / f"0.{suffix}").open("rb") as file:
        assert Image.open(file).mode == "I"
        assert set(np.unique(read_image(file, "L"))) == {expected}


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_modes_become_grey(mode):
    assert as_mode(Image.fromarray(RAMP.astype(np.uint16) * 256), mode).mode == "L"
    assert np.array_equal(np.asarray(as_mode(Image.fromarray(RAMP), mode)), RAMP)
    assert set(np.unique(as_mode(Image.fromarray(RAMP), "1"))) <= {0, 255}


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_transparent_palettes_have_their_colours(mode):
    image = Image.fromarray(RAMP).convert("RGB").quantize(8)
    expected = np.asarray(image.convert(mode))
    image.info["transparency"] = bytes(range(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(as_mode(image, mode)), expected)


def test_cmyk_is_as_pillow_converts_it():
    image = Image.fromarray(np.stack([RAMP, RAMP.T, RAMP], axis=-1)).convert("CMYK")
    assert np.array_equal(np.asarray(as_mode(image, "RGB")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_lab_has_its_colours_in_every_mode(mode, channels):
    cms = pytest.importorskip("PIL.ImageCms")
    image = Image.fromarray(np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1) // 2 + 64)
    srgb, lab = (cms.createProfile(name) for name in ("sRGB", "LAB"))
    found = as_mode(cms.applyTransform(image, cms.buildTransform(srgb, lab, "RGB", "LAB")), mode)
    difference = np.asarray(found).astype(int) - np.asarray(image.convert(mode))
    assert len(found.getbands()) == channels
    assert np.abs(difference).mean() < 1


def test_damaged_exif_and_many_pixels_give_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    damaged = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12\x00\x03\x00\x00\x00\xff"
    Image.new("RGB", (8, 8)).save(tmp_path / "0.jpg", exif=damaged)
    with warnings.catch_warnings(record=True) as told, (tmp_path / "0.jpg").open("rb") as file:
        warnings.simplefilter("always")
        assert read_image(file, "RGB").size == (8, 8)
    assert told == []


def test_images_are_not_turned_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "0.jpg", exif=exif)
    with (tmp_path / "0.jpg").open("rb") as file:
        assert read_image(file, "RGB").size == (8, 4)


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ({}, "RGB"),
        ({"in_chans": 1}, "L"),
        ({"in_chans": 4, "input_img_mode": "CMYK"}, "CMYK"),
        ({"input_size": (1, 8, 8), "input_img_mode": "F"}, "F"),
    ],
)
def test_modes(flags, mode):
    assert image_mode(Data(**flags)) == mode


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"in_chans": 4}, "not the 4 of --in-chans: give --input-img-mode RGBA"),
        ({"in_chans": 2}, "give --input-img-mode LA"),
        ({"in_chans": 5}, "no mode of Pillow has as many"),
        ({"input_img_mode": "CMYK"}, "CMYK has 4 channels, the model takes 3: give --in-chans 4"),
        ({"input_img_mode": "L"}, "L has 1 channel, the model takes 3"),
        ({"input_img_mode": "RGB\x1b"}, "no --input-img-mode"),
        ({"input_img_mode": "P", "in_chans": 1}, "no --input-img-mode 'P'"),
    ],
)
def test_wrong_modes(flags, words):
    with pytest.raises(InputError, match=words):
        image_mode(Data(**flags))


def test_augmentation_that_does_not_take_a_mode():
    data = Data(in_chans=4, input_img_mode="RGBA")
    check_mode(data, Augmentation())
    with pytest.raises(InputError, match="--aa works on images in the modes RGB and L, not RGBA"):
        check_mode(data, Augmentation(aa="rand"))


def test_a_wrong_mode_on_the_command_line(tmp_path, capsys):
    assert main(["train", str(tmp_path), "--input-img-mode", "CMYK"]) == 2
    assert "--input-img-mode CMYK has 4 channels" in capsys.readouterr().err
