"""Data sets of every kind through ``--dataset``, as far as they work without a network."""

import io
import json
import struct
import tarfile

import numpy as np
import pytest
import torch
from configs import config_of, evaluation_loader, training_loader
from PIL import Image

from flashkat.cli.main import main
from flashkat.data import datasets as datasets_module
from flashkat.data import loaders
from flashkat.data.datasets import FakeImages, check_same_classes, image_count
from flashkat.data.loaders import Batches
from flashkat.errors import InputError
from flashkat.models import create_model
from flashkat.system import distributed

CPU = torch.device("cpu")
CONFIG = {
    **{"input_size": (3, 8, 8), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"},
    **{"mean": (0.0,) * 3, "std": (1.0,) * 3},
}
TINY = ["--model-kwargs", "patch_size=4", "embed_dim=16", "depth=1", "num_heads=2"]
CLASSES = ("dark", "light")


def args_of(*argv):
    return config_of("-j", 0, "-b", 4, *argv)


def open_dataset(config, split, **more):
    return datasets_module.open_dataset(config.data, split, num_classes=config.model.num_classes, **more)


def picture(level):
    return Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8))


def as_bytes(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose brightness is their number, dark ones below 100."""
    root = tmp_path_factory.mktemp("folder")
    for split, count in (("train", 8), ("validation", 3)):
        for index, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(100 * index + 10 * number).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def archives(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("archives")
    for split, name in (("train", "train"), ("validation", "val")):
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            for path in sorted((folder / split).rglob("*.png")):
                archive.add(path, arcname=str(path.relative_to(folder / split)))
    return root


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


def contents(args, split="validation", **more):
    """Sorted pairs of brightness and class."""
    loader = evaluation_loader(open_dataset(args, split, **more), CONFIG, args, CPU)
    pairs = [
        (round(float(image.mean()) * 255), int(label))
        for images, target in loader
        for image, label in zip(images, target, strict=True)
    ]
    return sorted(pairs)


EXPECTED = [(0, 0), (10, 0), (20, 0), (100, 1), (110, 1), (120, 1)]
SHARDS = ["--dataset", "wds/", "--num-classes", 2, "--train-split", "train-{0000..0001}.tar|16"]
SHARDS += ["--val-split", "validation-{0000..0001}.tar|6"]


@pytest.fixture(scope="module")
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


def test_folder(folder):
    assert contents(args_of(folder)) == EXPECTED
    assert contents(args_of(folder, "--dataset", "folder")) == EXPECTED


def test_archives(archives):
    assert contents(args_of(archives)) == EXPECTED
    assert contents(args_of(archives / "val.tar")) == EXPECTED
    train, val = open_dataset(args_of(archives), "train"), open_dataset(args_of(archives), "val")
    assert train.classes == val.classes == list(CLASSES)
    check_same_classes(train, val)


def test_an_archive_without_images(tmp_path):
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        add(archive, "notes.txt", b"nothing")
    with pytest.raises(InputError, match="val"):
        open_dataset(args_of(tmp_path), "val")
    (tmp_path / "val.tar").write_text("no archive")
    with pytest.raises(InputError, match="cannot read"):
        open_dataset(args_of(tmp_path), "val")


def test_damaged_image_in_an_archive(tmp_path):
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        add(archive, "cat/broken.png", b"no picture")
    with pytest.raises(InputError, match=r"cannot decode the image .*broken.png"):
        contents(args_of(tmp_path), "val")


def test_class_map(folder, tmp_path):
    (tmp_path / "classes.txt").write_text("light\ndark\n")
    args = args_of(folder, "--class-map", tmp_path / "classes.txt")
    assert contents(args) == [(level, 1 - label) for level, label in EXPECTED]
    assert open_dataset(args, "train").classes == ["light", "dark"]
    with pytest.raises(InputError, match="no class map at nowhere"):
        open_dataset(args_of(folder, "--class-map", "nowhere.txt"), "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_shards(shards, workers):
    pytest.importorskip("webdataset")
    args = args_of(shards, *SHARDS, "-j", workers)
    assert contents(args, args.data.val_split) == EXPECTED
    dataset = open_dataset(args, args.data.train_split, is_training=True)
    loader = training_loader(dataset, CONFIG, args, CPU)
    assert sum(len(target) for _, target in loader) == len(loader) * 4 == 16


def test_shards_with_a_file_about_them(shards, folder, tmp_path):
    pytest.importorskip("webdataset")
    names = [f"validation-{shard:04d}.tar" for shard in range(2)]
    split = {"name": "validation", "num_samples": 6, "filenames": names, "shard_lengths": [3, 3]}
    for name in names:
        (tmp_path / name).symlink_to(shards / name)
    (tmp_path / "info.json").write_text(json.dumps({"splits": {"validation": split}}))
    assert contents(args_of(tmp_path, "--dataset", "wds/")) == EXPECTED


def test_shards_train(shards, tmp_path, capsys):
    pytest.importorskip("webdataset")
    flags = ["--img-size", 8, *TINY, "-j", 0, "-b", 4, "--epochs", 1, "--epoch-repeats", 2, "--output", tmp_path]
    assert main([str(flag) for flag in ("train", shards, *SHARDS, *flags)]) == 0
    out, err = capsys.readouterr()
    assert "32 training and 6 evaluation images, 2 classes" in out
    assert err == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--val-split", "validation-{0000..0001}.tar"], "give --val-num-samples"),
        (["--val-split", "validation"], "split validation not found"),
        (["--train-split", "train-{0000..0001}.tar"], "num_samples"),
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


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_beyond_the_classes(shards, tmp_path, workers, capsys):
    pytest.importorskip("webdataset")
    flags = ["--img-size", 8, *TINY, "-j", workers, "-b", 4, "--epochs", 1, "--output", tmp_path / "output"]
    assert main([str(flag) for flag in ("train", shards, *SHARDS, "--num-classes", 1, *flags)]) == 2
    err = capsys.readouterr().err
    assert err.endswith("has the label 1, which is none of the 1 classes from 0 to 0: see --num-classes\n")
    assert err.count("\n") == 1
    flags = ["--model", "kat_tiny_patch16_224", "--img-size", 8, *TINY, "--checkpoint", tmp_path / "checkpoint.pth.tar"]
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = create_model("kat_tiny_patch16_224", num_classes=1, **sizes)
    torch.save({"state_dict": model.state_dict()}, flags[-1])
    flags += ["--num-classes", 1, "-j", workers, "--dataset", "wds/", "--split", "validation-{0000..0001}.tar|6"]
    assert main([str(flag) for flag in ("validate", shards, *flags)]) == 2
    assert "has the label 1, which is none of the 1 classes" in capsys.readouterr().err


@pytest.mark.parametrize("target", [2, -1, "cat", None])
def test_labels_that_are_no_classes(folder, mnist, target):
    files, digits = (
        open_dataset(args_of(folder), "train"),
        open_dataset(args_of(mnist, "--dataset", "torch/mnist"), "val"),
    )
    for dataset in (files, digits):
        dataset.transform = lambda image: image
        dataset.num_classes = 2
        assert dataset[0][1] == 0
    files.reader._targets[0] = target
    digits.dataset.target_transform = lambda _: target
    for dataset in (files, digits):
        with pytest.raises(InputError, match=f"has the label {target}, which is none"):
            dataset[0]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_shards_that_give_no_images(shards, split, tmp_path, capsys):
    """Whose first sample is as it should be, in parts, for which timm's reader leaves out all of them."""
    pytest.importorskip("webdataset")
    for path in shards.glob("*.tar"):
        (tmp_path / path.name).symlink_to(path)
    for shard in range(2):
        (tmp_path / f"{split}-{shard:04d}.tar").unlink()
        with tarfile.open(tmp_path / f"{split}-{shard:04d}.tar", "w") as archive:
            add(archive, f"{shard}.png", b"no picture")
            add(archive, f"{shard}.cls", b"1")
    flags = ["--img-size", 8, *TINY, "-j", 0, "-b", 4, "--epochs", 1, "--output", tmp_path / "output"]
    assert main([str(flag) for flag in ("train", tmp_path, *SHARDS, *flags)]) == 2
    error = "flashkat train: error: a whole pass over the data gave no images: see what its files hold"
    assert error in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["wds", "hfids"])
def test_streamed_images_count_once_in_several_processes(shards, tables, tmp_path, kind, workers, monkeypatch):
    pytest.importorskip("webdataset")
    args = args_of(shards, *SHARDS, "-b", 2, "-j", workers)
    if kind == "hfids":
        args = args_of("--dataset", f"hfids/{tables / 'images'}", "--data-dir", tmp_path, "-b", 2, "-j", workers)
    monkeypatch.setattr(distributed, "size", lambda: 4)
    found, batches = [], set()
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        dataset = open_dataset(args, args.data.val_split if kind == "wds" else "validation", num_samples=6)
        # What timm's reader finds in a process of several.
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = rank, 4
        assert image_count(dataset) == 6
        share = list(evaluation_loader(dataset, CONFIG, args, CPU))
        batches.add(len(share))
        for images, target in share:
            levels = [round(float(image.mean()) * 255) for image in images]
            found += zip(levels, target.tolist(), strict=False)
    assert sorted(found) == EXPECTED
    assert len(batches) == 1


def test_streams_of_several_processes_need_not_fill_their_batches(shards, monkeypatch):
    pytest.importorskip("webdataset")
    args = args_of(shards, *SHARDS, "-b", 8)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    dataset = open_dataset(args, args.data.train_split, is_training=True)
    dataset.reader.dist_num_replicas = 2
    assert image_count(dataset) == 16
    assert len(training_loader(dataset, CONFIG, args, CPU)) == 1


def test_number_of_samples_by_a_flag(shards):
    pytest.importorskip("webdataset")
    args = args_of(shards, *SHARDS)
    assert len(open_dataset(args, "validation-{0000..0001}.tar", num_samples=6)) == 6


@pytest.mark.parametrize("flags", [["--use-multi-epochs-loader"], ["--aug-splits", 2, "--aa", "rand-m9"]], ids=str)
def test_what_needs_images_by_number(shards, flags, capsys):
    pytest.importorskip("webdataset")
    assert main([str(flag) for flag in ("train", shards, *SHARDS, *flags, "-j", 0)]) == 2
    assert f"{flags[0]} needs images by number, " in capsys.readouterr().err


def test_classes_that_no_one_lists(shards, capsys):
    pytest.importorskip("webdataset")
    flags = [flag for flag in SHARDS if flag not in ("--num-classes", 2)]
    assert main([str(flag) for flag in ("train", shards, *flags)]) == 2
    assert "does not list its classes: give --num-classes" in capsys.readouterr().err


def test_hugging_face(folder, tmp_path):
    pytest.importorskip("datasets")
    args = args_of("--dataset", f"hfds/{folder}", "--data-dir", tmp_path / "cache")
    assert contents(args) == EXPECTED
    assert open_dataset(args, "train").classes == list(CLASSES)
    with pytest.raises(InputError, match="cannot open the test split"):
        open_dataset(args, "test")


def test_hugging_face_streamed(tables, tmp_path):
    args = args_of("--dataset", f"hfids/{tables / 'images'}", "--data-dir", tmp_path / "cache")
    assert contents(args, num_samples=6) == EXPECTED
    args = args_of("--dataset", f"hfds/{tables / 'bytes'}", "--data-dir", tmp_path / "cache")
    assert contents(args) == EXPECTED


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


def test_samples_that_cannot_be_read(tmp_path):
    """What the columns do not show, such as a sample without an image."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": [as_bytes(picture(0)), None], "label": [0, 1]})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "validation.parquet")
    for kind in ("hfds", "hfids"):
        args = args_of("--dataset", f"{kind}/{tmp_path}", "--data-dir", tmp_path / "cache")
        with pytest.raises(InputError, match="cannot read "):
            contents(args, num_samples=2)


def test_torchvisions_folder(folder):
    assert contents(args_of(folder, "--dataset", "torch/folder")) == EXPECTED


def test_torchvisions_mnist(mnist):
    args = args_of(mnist, "--dataset", "torch/mnist")
    found = open_dataset(args, "validation")
    assert len(found) == 10
    assert len(found.classes) == 10
    assert contents(args) == [(10 * number, number) for number in range(10)]
    # Colours and grey, as the model takes them.
    grey = args_of(mnist, "--dataset", "torch/mnist", "--in-chans", 1)
    config = {**CONFIG, "input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,)}
    images, _ = next(iter(evaluation_loader(open_dataset(grey, "validation"), config, grey, CPU)))
    assert images.shape == (4, 1, 8, 8)


def test_grey_images_train(mnist, tmp_path, capsys):
    flags = ["--dataset", "torch/mnist", "--in-chans", 1, "--img-size", 8, *TINY, "-j", 0, "-b", 4, "--epochs", 1]
    assert main([str(flag) for flag in ("train", mnist, *flags, "--output", tmp_path, "--experiment", "run")]) == 0
    checkpoint = tmp_path / "run" / "last.pth.tar"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["patch_embed.proj.weight"].shape[1] == 1
    assert not main(["validate", str(mnist), "--dataset", "torch/mnist", "--checkpoint", str(checkpoint), "-j", "0"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "cifar10"], "no kind of data set 'cifar10'"),
        (["--dataset", "torch/"], "--dataset torch/ needs a name: torch/NAME"),
        (["--dataset", "web/cifar10"], "no kind of data set 'web/cifar10'"),
        (["--dataset", "torch/cifar10"], "--dataset-download downloads it"),
        (["--dataset", "torch/cifar11"], "Unknown torchvision dataset cifar11; did you mean 'cifar10'[?]$"),
        (["--dataset", "torch/cifar1"], "Unknown torchvision dataset cifar1; did you mean 'cifar10'[?]$"),
        (["--dataset", "torch/food"], "Unknown torchvision dataset food; there are cifar10, .*, image_folder$"),
    ],
)
def test_data_sets_that_are_not_there(tmp_path, flags, words):
    with pytest.raises(InputError, match=words):
        open_dataset(args_of(tmp_path, *flags), "train")


def test_download_is_passed_on(tmp_path, monkeypatch):
    asked = {}

    def create(name, **kwargs):
        asked.update(kwargs, name=name)
        return torch.utils.data.TensorDataset(torch.zeros(3))

    monkeypatch.setattr("flashkat.data.datasets.create_dataset", create)
    open_dataset(args_of(tmp_path / "new", "--dataset", "torch/cifar10", "--dataset-download"), "train")
    assert (asked["name"], asked["download"], asked["root"]) == ("torch/cifar10", True, str(tmp_path / "new"))
    monkeypatch.setattr("flashkat.data.datasets.require_package", lambda *_: None)
    flags = ["--dataset", "hfds/owner/name", "--dataset-trust-remote-code", "--input-key", "a", "--target-key", "b"]
    with pytest.raises(AttributeError):  # what is returned is no data set of Hugging Face's
        open_dataset(args_of(*flags), "train")
    assert (asked["trust_remote_code"], asked["input_key"], asked["target_key"]) == (True, "a", "b")


@pytest.mark.parametrize(
    ("dataset", "package"),
    [
        *(("hfds/a", "datasets"), ("hfids/a", "datasets"), ("wds/", "webdataset"), ("tfds/a", "tensorflow-datasets")),
    ],
)
def test_packages_that_are_not_installed(tmp_path, dataset, package, monkeypatch):
    monkeypatch.setattr("flashkat.errors.is_installed", lambda module: False)
    with pytest.raises(InputError, match=rf"needs a package that is not installed: pip install {package}$"):
        open_dataset(args_of(tmp_path, "--dataset", dataset), "train")


# --- fake data --------------------------------------------------------------------------------------------------------


def test_fake_data(tmp_path):
    args = args_of("--fake-data", "--num-classes", 5, "--train-num-samples", 10)
    train, val = open_dataset(args, "train", is_training=True, num_samples=10), open_dataset(args, "validation")
    assert isinstance(train, FakeImages)
    assert (len(train), len(val), len(train.classes)) == (8, 40, 5)
    loader = training_loader(train, CONFIG, args, CPU)
    (first, target), (second, _) = list(loader)
    assert torch.equal(first, second)
    assert first.shape == (4, 3, 8, 8)
    assert int(target.max()) < 5


def test_training_on_fake_data(tmp_path):
    flags = ["--fake-data", "--num-classes", 4, "--train-num-samples", 8, "--val-num-samples", 8, "--mixup", 0.5]
    argv = ["train", *flags, "--img-size", 8, *TINY, "-b", 4, "--epochs", 1, "--output", tmp_path]
    assert main([str(flag) for flag in argv]) == 0


# --- loaders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--no-prefetcher"], ["--no-pin-mem"], ["--channels-last"]])
def test_ways_to_load_are_the_same_images(folder, more):
    assert contents(args_of(folder, *more)) == EXPECTED


def test_layout_and_dtype(folder):
    args = args_of(folder, "--channels-last", "--model-dtype", "bfloat16")
    for loader in (
        evaluation_loader(open_dataset(args, "validation"), CONFIG, args, CPU),
        training_loader(open_dataset(args, "train"), CONFIG, args, CPU),
    ):
        images, target = next(iter(loader))
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.dtype == torch.bfloat16
        assert target.dtype == torch.int64


def test_epoch_repeats(folder):
    args = args_of(folder, "--epoch-repeats", 2.5, "--no-aug")
    loader = training_loader(open_dataset(args, "train"), CONFIG, args, CPU)
    levels = [round(float(image.mean()) * 255) for images, _ in loader for image in images]
    assert len(levels) == 40
    assert len(set(levels)) == 16


def test_waiting_is_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("flashkat.data.loaders.time.perf_counter", lambda: now[0])

    class Slow:
        def __iter__(self):
            for _ in range(2):
                now[0] += 3
                yield torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)

    loader = Batches(Slow(), args_of("data").runtime, CPU)
    for _ in range(2):
        for _ in loader:
            now[0] += 10
        assert loader.waited == 6


def test_views_of_an_image_in_a_batch(folder):
    args = args_of(folder, "--aug-splits", 3, "--aa", "rand-m9", "--scale", 1, 1, "--ratio", 1, 1, "--hflip", 0)
    images, target = next(iter(training_loader(open_dataset(args, "train"), CONFIG, args, CPU)))
    assert images.shape == (12, 3, 8, 8)
    assert target.tolist() == target[:4].tolist() * 3
    # The first of them are plain.
    for image, label in zip(images[:4], target[:4], strict=True):
        assert float(image.std()) < 1e-6
        assert (round(float(image.mean()) * 255) >= 100) == bool(label)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--aug-splits", 1], "2 or more"),
        (["--aug-splits", 2, "--no-prefetcher"], "leave out --no-prefetcher"),
        (["--aug-splits", 2, "--no-aug"], "leave out --no-aug"),
        (["--aug-repeats", 3], "it needs several, from torchrun"),
    ],
)
def test_views_that_cannot_be(folder, flags, words):
    args = args_of(folder, *flags)
    with pytest.raises(InputError, match=words):
        training_loader(open_dataset(args, "train"), CONFIG, args, CPU)


@pytest.fixture
def given(monkeypatch):
    """What timm and PyTorch were told last, under the names of their arguments."""
    given = {}

    def told(make, name):
        def make_and_note(*args, **kwargs):
            given.update(kwargs)
            return make(*args, **kwargs)

        monkeypatch.setattr(f"flashkat.data.{name}", make_and_note)

    told(loaders.create_transform, "loaders.create_transform")
    told(torch.utils.data.DataLoader, "order.DataLoader")
    monkeypatch.setattr(loaders, "PrefetchLoader", lambda loader, *args, **kwargs: given.update(kwargs))
    return given


@pytest.mark.parametrize(
    ("device", "flags", "pinned"), [("cuda", [], True), ("cuda", ["--no-pin-mem"], False), ("cpu", [], False)]
)
def test_memory_is_pinned_for_gpus(folder, given, device, flags, pinned):
    args = args_of(folder, *flags)
    training_loader(open_dataset(args, "train"), CONFIG, args, torch.device(device))
    assert given.pop("pin_memory") == pinned
    evaluation_loader(open_dataset(args, "validation"), CONFIG, args, torch.device(device))
    assert given["pin_memory"] == pinned


@pytest.mark.parametrize("place", [[], ["--no-prefetcher"]], ids=["prefetcher", "no prefetcher"])
def test_augmentation_flags_reach_timm(folder, given, place):
    flags = ["--train-crop-mode", "rkrc", "--color-jitter-prob", 0.3, "--grayscale-prob", 0.2, "--recount", 3]
    flags += ["--gaussian-blur-prob", 0.1, "--resplit", "--reprob", 0.5, "--remode", "rand", "--vflip", 0.4]
    args = args_of(folder, *flags, *place, "-j", 2)
    training_loader(open_dataset(args, "train"), CONFIG, args, CPU)
    expected = {"train_crop_mode": "rkrc", "color_jitter_prob": 0.3, "grayscale_prob": 0.2, "re_count": 3}
    expected |= {"gaussian_blur_prob": 0.1, "re_num_splits": 2, "re_prob": 0.5, "re_mode": "rand", "vflip": 0.4}
    expected |= {"use_prefetcher": not place, "num_workers": 2, "persistent_workers": True}
    assert {name: given[name] for name in expected} == expected


@pytest.mark.parametrize(("flags", "splits"), [([], 0), (["--resplit"], 2), (["--resplit", "--aug-splits", 3], 3)])
def test_part_of_a_batch_that_is_spared(folder, given, flags, splits):
    args = args_of(folder, *flags, "--reprob", 0.5)
    training_loader(open_dataset(args, "train"), CONFIG, args, CPU)
    assert given["re_num_splits"] == splits


class Draws(torch.utils.data.IterableDataset):
    """What NumPy draws in a loader's process, and what its seed gives."""

    def __iter__(self):
        seed = torch.utils.data.get_worker_info().seed
        yield np.random.rand(), np.random.RandomState(seed % (2**32 - 1)).rand()


@pytest.mark.parametrize("seeding", ["all", "part"])
def test_worker_seeding(folder, given, seeding):
    args = args_of(folder, "--worker-seeding", seeding, "-j", 1)
    training_loader(open_dataset(args, "train"), CONFIG, args, CPU)
    ((drawn, seeded),) = torch.utils.data.DataLoader(Draws(), 1, num_workers=1, worker_init_fn=given["worker_init_fn"])
    assert (drawn == seeded) == (seeding == "all")
