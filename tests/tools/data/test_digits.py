import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from flashkat.cli.main import main
from flashkat.data.datasets import check_splits
from flashkat.data.folders import open_split
from flashkat.errors import InputError
from flashkat.tools.data.digits import write_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert main(["data", "digits", str(folder)]) == 0
    return folder


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout(digits):
    assert sorted(path.name for path in digits.iterdir()) == ["train", "val"]
    for split in ("train", "val"):
        assert sorted(path.name for path in (digits / split).iterdir()) == list("0123456789")
    train, val = (open_split(digits, split) for split in ("train", "val"))
    check_splits(train, val)
    assert len(train) + len(val) == 1797
    assert all(path.suffix == ".png" for path in files(digits))


def test_every_image_is_scikit_learns_once(digits):
    known = load_digits()
    seen = []
    for path, content in files(digits).items():
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))
            pixels = np.asarray(image)
        number = int(path.stem)
        seen.append(number)
        # Sixteen shades of grey, from black to white.
        assert np.array_equal(pixels, np.rint(known.images[number] / 16 * 255))
        assert path.parent.name == str(known.target[number])
    # The two splits are disjoint, and together all there is.
    assert sorted(seen) == list(range(1797))


def test_a_fifth_of_every_digit_is_held_out(digits):
    of_class = Counter(load_digits().target.tolist())
    val = Counter(path.parent.name for path in (digits / "val").glob("*/*"))
    assert sum(val.values()) == 360
    for digit, count in of_class.items():
        assert abs(val[str(digit)] - 0.2 * count) <= 2


def test_writing_again_writes_the_same(digits, tmp_path):
    counts = write_digits(tmp_path / "again")
    assert counts == {"train": 1437, "val": 360}
    assert files(tmp_path / "again") == files(digits)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_says_what_it_wrote(tmp_path, capsys):
    assert main(["data", "digits", str(tmp_path / "a" / "b")]) == 0
    out, err = capsys.readouterr()
    assert out == f"Wrote 1437 training and 360 validation images to {tmp_path / 'a' / 'b'}\n"
    assert err == ""


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "empty").mkdir()
    assert write_digits(tmp_path / "empty")["val"] == 360
    assert len(files(tmp_path / "empty")) == 1797


def test_others_may_read_what_was_written(tmp_path):
    write_digits(tmp_path / "digits")
    (tmp_path / "usual").mkdir()
    for folder in (tmp_path / "digits", tmp_path / "digits" / "train", tmp_path / "digits" / "val" / "7"):
        assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_working_folder_will_do(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert write_digits(".")["val"] == 360
    assert len(files(tmp_path / "here")) == 1797


def test_a_link_to_an_empty_folder_will_do(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert write_digits(tmp_path / "link")["val"] == 360
    assert len(files(tmp_path / "disk")) == 1797


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    for folder in (tmp_path / "full", tmp_path / "full" / "mine", tmp_path / "full" / "mine" / "below"):
        with pytest.raises(InputError, match=r"choose another folder or remove it|cannot write to"):
            write_digits(folder)
    assert files(tmp_path) == {(tmp_path / "full" / "mine").relative_to(tmp_path): b"precious"}


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_nothing_is_left_half_written(tmp_path, monkeypatch, error):
    real, count = Image.Image.save, []

    def fail(self, path, *args, **kwargs):
        count.append(path)
        if len(count) == 100:
            raise error
        real(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(type(error)):
        write_digits(tmp_path / "digits")
    assert len(count) == 100
    assert not list(tmp_path.iterdir())
