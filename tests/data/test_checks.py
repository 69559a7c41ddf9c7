"""What the samples of a data set hold is looked at when it is opened."""

import tarfile

import pytest
import timm
from samples import SHARDS, add, args_of, as_bytes, contents, open_dataset, picture
from tiny import MODEL_KWARGS

from flashkat.cli.main import main
from flashkat.errors import InputError

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--val-split", "validation-{0000..0001}.tar"], "give --val-num-samples"),
        (["--val-split", "validation"], "split validation not found"),
        (["--train-split", "train-{0000..0001}.tar"], "does not say how many samples it has: give --train-num-samples"),
        (["--train-split", "train-{0001..0003}.tar|16"], "train-0002.tar: 2 of the 3 of the train-"),
        (["--val-split", "nope-0000.tar|6"], "nope-0000.tar: 1 of the 1 of the nope-"),
        (["--input-key", "img"], "hold png, cls, but no 'img': give --input-key"),
        (["--target-key", "label"], "hold png, cls, but no 'json': give --target-key"),
        (["-j", 3], "has 2 shards, fewer than the 3 workers of all processes: give fewer --workers"),
    ],
)
def test_shards_that_will_not_do(shards, flags, words, capsys):
    pytest.importorskip("webdataset")
    assert main([str(flag) for flag in ("train", shards, *SHARDS, "-j", 0, *flags)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert words in err


@pytest.mark.parametrize(
    ("dataset", "flags", "words"),
    [
        *(
            (f"{kind}/", flags, words)
            for kind in ("hfds", "hfids")
            for flags, words in (
                (["--input-key", "img"], "hold image, label, but no 'img': give --input-key$"),
                (["--target-key", "lab"], "hold image, label, but no 'lab': give --target-key$"),
            )
        ),
        ("hfids/", ["bytes"], "column 'image' of .* holds no images but bytes: --dataset hfds/ reads these$"),
    ],
)
def test_columns_that_are_not_there(tables, tmp_path, dataset, flags, words):
    name, more = ("bytes", []) if flags == ["bytes"] else ("images", flags)
    args = args_of("--dataset", f"{dataset}{tables / name}", "--data-dir", tmp_path / "cache", *more)
    with pytest.raises(InputError, match=words):
        open_dataset(args, "validation", num_samples=6)
    # Once it has been read, what it holds is known without a look at a sample.
    known = args_of("--dataset", f"hfds/{tables / name}", "--data-dir", tmp_path / "cache")
    assert len(open_dataset(known, "validation")) == 6
    with pytest.raises(InputError, match=words):
        open_dataset(args, "validation", num_samples=6)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_shards_that_give_no_images(shards, split, tmp_path, capsys):
    """Whose first sample is as it should be, in parts, for which timm's reader leaves out all of them."""
    pytest.importorskip("webdataset")
    if split == "validation" and tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31):
        pytest.skip("timm's loader fails in a pass without a batch")
    for path in shards.glob("*.tar"):
        (tmp_path / path.name).symlink_to(path)
    for shard in range(2):
        (tmp_path / f"{split}-{shard:04d}.tar").unlink()
        with tarfile.open(tmp_path / f"{split}-{shard:04d}.tar", "w") as archive:
            add(archive, f"{shard}.png", b"no picture")
            add(archive, f"{shard}.cls", b"1")
    flags = ["--img-size", 8, *MODEL_KWARGS, "-j", 0, "-b", 4, "--epochs", 1, "--output", tmp_path / "output"]
    assert main([str(flag) for flag in ("train", tmp_path, *SHARDS, *flags)]) == 2
    error = "flashkat train: error: a whole pass over the data gave no images: check its files"
    assert error in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("beside", ["cls", "json"])
def test_shards_whose_classes_are_texts(tmp_path, beside, capsys):
    """timm's reader warns of each sample, and leaves it out."""
    pytest.importorskip("webdataset")
    for split in ("train", "validation"):
        for shard in range(2):
            with tarfile.open(tmp_path / f"{split}-{shard:04d}.tar", "w") as archive:
                add(archive, f"{shard}.png", as_bytes(picture(0)))
                add(archive, f"{shard}.{beside}", b"cat" if beside == "cls" else b'{"label": "cat"}')
    flags = ["--target-key", "label"] if beside == "json" else []
    assert main([str(flag) for flag in ("train", tmp_path, *SHARDS, "-j", 0, *flags)]) == 2
    assert "has the class 'cat', where shards hold its number" in capsys.readouterr().err


@pytest.fixture
def texts(tmp_path):
    """A function that makes a table of images whose classes are texts; returns the flags that open it."""
    datasets = pytest.importorskip("datasets")

    def make(kind, labels):
        rows = {"image": [{"bytes": as_bytes(picture(10 * number)), "path": None} for number in range(len(labels))]}
        table = datasets.Dataset.from_dict({**rows, "label": labels}).cast_column("image", datasets.Image())
        (tmp_path / "table").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "table" / "validation.parquet")
        return ["--dataset", f"{kind}/{tmp_path / 'table'}", "--data-dir", tmp_path / "cache"]

    return make


def test_classes_are_built_from_texts(texts):
    args = args_of(*texts("hfds", ["c10", "c9", "c10", "a"]))
    assert open_dataset(args, "validation").classes == ["a", "c9", "c10"]
    assert contents(args) == [(0, 2), (10, 1), (20, 2), (30, 0)]


@pytest.mark.parametrize("labels", [["a", "A", "01", "1"], ["1", "01", "A", "a"]])
def test_texts_that_are_alike_have_one_order(texts, labels):
    """Whichever comes first in a split. Otherwise training and evaluation would number them differently."""
    assert open_dataset(args_of(*texts("hfds", labels)), "validation").classes == ["01", "1", "A", "a"]


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_a_class_map_numbers_texts(texts, tmp_path, kind):
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    args = args_of(*texts(kind, ["cat", "dog", "cat"]), "--class-map", tmp_path / "map.txt")
    assert contents(args, num_samples=3) == [(0, 1), (10, 0), (20, 1)]


def test_texts_that_are_no_classes(texts, tmp_path):
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    args = args_of(*texts("hfds", ["cat", "emu"]), "--class-map", tmp_path / "map.txt")
    with pytest.raises(InputError, match=r"column 'label' of .* has the class 'emu', not in the class map"):
        open_dataset(args, "validation")
    with pytest.raises(InputError, match=r"column 'label' of .* has samples without a class"):
        open_dataset(args_of(*texts("hfds", ["cat", None])), "validation")


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_a_class_map_does_not_number_numbers(texts, tmp_path, kind, is_known):
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    flags = texts(kind, [0, 1])
    if is_known:
        open_dataset(args_of(flags[0], flags[1].replace("hfids/", "hfds/"), *flags[2:]), "validation")
    with pytest.raises(InputError, match=r"column 'label' of .* holds numbers, .*: leave out --class-map"):
        open_dataset(args_of(*flags, "--class-map", tmp_path / "map.txt"), "validation", num_samples=2)


@pytest.mark.parametrize(("names", "words"), [(["cat", "dog"], None), (["cat", "emu"], "the class 'emu', not in")])
def test_a_class_map_numbers_the_names_of_numbers(texts, tmp_path, names, words):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "map.txt").write_text("dog\ncat\n")
    args = args_of(*texts("hfds", [0, 1, 1]), "--class-map", tmp_path / "map.txt")
    path = tmp_path / "table" / "validation.parquet"
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "made"))
    table.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(path)
    if tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31):
        words = "holds numbers"
    if words is None:
        assert contents(args) == [(0, 1), (10, 0), (20, 0)]
    else:
        with pytest.raises(InputError, match=words):
            open_dataset(args, "validation")


@pytest.mark.parametrize("is_known", [False, True])
def test_a_stream_of_texts_needs_a_class_map(texts, is_known):
    flags = texts("hfds", ["cat", "dog"])
    if is_known:  # the features of a table that has been read
        open_dataset(args_of(*flags), "validation")
    flags[1] = flags[1].replace("hfds/", "hfids/")
    with pytest.raises(
        InputError, match=r"column 'label' .* holds texts, .*: give --class-map, or take --dataset hfds/"
    ):
        open_dataset(args_of(*flags), "validation", num_samples=2)


def test_a_stream_that_is_not_counted(texts):
    with pytest.raises(InputError, match="does not say how many samples it has: give --val-num-samples"):
        open_dataset(args_of(*texts("hfids", ["cat"])), "validation")
