"""Data sets of every kind through ``--dataset``, as far as they work without a network."""

import json
import shutil
import tarfile

import pytest
import torch
from configs import evaluation_loader, training_loader
from samples import CLASSES, CONFIG, CPU, EXPECTED, SHARDS, add, args_of, as_bytes, contents, open_dataset, picture
from tiny import MODEL_KWARGS

from flashkat.cli.main import main
from flashkat.data.datasets import FakeImages, check_splits, image_count
from flashkat.errors import InputError
from flashkat.models import create_model
from flashkat.system import distributed

pytestmark = pytest.mark.usefixtures("no_curves")


def test_folder(folder):
    assert contents(args_of(folder)) == EXPECTED
    assert contents(args_of(folder, "--dataset", "folder")) == EXPECTED


def test_archives(archives):
    assert contents(args_of(archives)) == EXPECTED
    assert contents(args_of(archives / "val.tar")) == EXPECTED
    train, val = open_dataset(args_of(archives), "train"), open_dataset(args_of(archives), "val")
    assert train.classes == val.classes == list(CLASSES)
    check_splits(train, val)


def test_a_folder_around_the_training_images_is_not_evaluated(folder, tmp_path):
    """It is what --val-split val falls back to where no folder has the name of a split."""
    shutil.copytree(folder / "train", tmp_path / "mine")
    train, val = open_dataset(args_of(tmp_path), "mine"), open_dataset(args_of(tmp_path), "val")
    assert len(train) == len(val)
    with pytest.raises(InputError, match=r"holds the training images of .*mine, too: name the images to evaluate in"):
        check_splits(train, val)


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


def test_a_class_map_names_the_classes_of_shards(shards, tmp_path):
    pytest.importorskip("webdataset")
    (tmp_path / "classes.txt").write_text("dark\nlight\n")
    args = args_of(shards, *SHARDS, "--class-map", tmp_path / "classes.txt")
    assert contents(args, args.data.val_split) == EXPECTED
    assert open_dataset(args, args.data.val_split).classes == list(CLASSES)


def test_torchvisions_data_sets_take_no_class_map(mnist, tmp_path):
    args = args_of(mnist, "--dataset", "torch/mnist", "--class-map", tmp_path / "classes.txt")
    with pytest.raises(InputError, match="numbers its classes itself: leave out --class-map"):
        open_dataset(args, "validation")


@pytest.mark.parametrize("split", ["trian", "Train", "train[:90%]"])
def test_torchvisions_data_sets_have_two_splits(mnist, split):
    """timm would train on the images to evaluate."""
    with pytest.raises(InputError, match="torch/mnist has the splits train and validation, not "):
        open_dataset(args_of(mnist, "--dataset", "torch/mnist"), split)
    for name, count in (("training", 20), ("test", 10), ("valid", 10)):
        assert len(open_dataset(args_of(mnist, "--dataset", "torch/mnist"), name)) == count


@pytest.mark.parametrize("workers", [0, 2])
def test_shards(shards, workers):
    pytest.importorskip("webdataset")
    args = args_of(shards, *SHARDS, "-j", workers)
    assert contents(args, args.data.val_split) == EXPECTED
    dataset = open_dataset(args, args.data.train_split, is_training=True)
    loader = training_loader(dataset, CONFIG, args, CPU)
    assert sum(len(target) for _, target in loader) == len(loader) * 4 == 16


@pytest.mark.parametrize(
    "content", [b"no picture", as_bytes(picture(1))[:50], b"version https://git-lfs.github.com/spec/v1"]
)
def test_an_image_of_a_shard_that_cannot_be_decoded_is_left_out_by_name(tmp_path, caplog, content):
    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "val-0.tar", "w") as archive:
        for number, data in enumerate([as_bytes(picture(7)), content, as_bytes(picture(9))]):
            add(archive, f"cats/{number}.png", data)
            add(archive, f"cats/{number}.cls", str(number).encode())
    args = args_of(tmp_path, "--dataset", "wds/", "--num-classes", 3)
    assert contents(args, "val-0.tar|3") == [(7, 0), (9, 2)]
    (record,) = (each for each in caplog.records if each.levelname == "WARNING")
    assert "val-0.tar/cats/1.png: " in record.message


def test_shards_with_classes_in_json(tmp_path):
    pytest.importorskip("webdataset")
    labels = {"alt_label": "label"}
    with tarfile.open(tmp_path / "val-0.tar", "w") as archive:
        for number, label in enumerate([1, -1, 0]):
            add(archive, f"{number}.png", as_bytes(picture(number)))
            add(archive, f"{number}.json", json.dumps({"label": label}).encode())
    split = {"name": "validation", "num_samples": 3, "filenames": ["val-0.tar"], "shard_lengths": [3], **labels}
    (tmp_path / "info.json").write_text(json.dumps({"splits": {"validation": split}}))
    # A negative number leaves a sample out.
    assert contents(args_of(tmp_path, "--dataset", "wds/", "--num-classes", 2)) == [(0, 1), (2, 0)]


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
    flags = [
        "--img-size",
        8,
        *MODEL_KWARGS,
        "-j",
        0,
        "-b",
        4,
        "--epochs",
        1,
        "--epoch-repeats",
        2,
        "--output",
        tmp_path,
    ]
    assert main([str(flag) for flag in ("train", shards, *SHARDS, *flags)]) == 0
    out, err = capsys.readouterr()
    assert "32 training and 6 evaluation images, 2 classes" in out
    assert err == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_beyond_the_classes(shards, tmp_path, workers, capsys):
    pytest.importorskip("webdataset")
    flags = ["--img-size", 8, *MODEL_KWARGS, "-j", workers, "-b", 4, "--epochs", 1, "--output", tmp_path / "output"]
    assert main([str(flag) for flag in ("train", shards, *SHARDS, "--num-classes", 1, *flags)]) == 2
    err = capsys.readouterr().err
    assert err.endswith("has the label 1, which is none of the 1 classes from 0 to 0: see --num-classes\n")
    assert err.count("\n") == 1
    flags = [
        "--model",
        "kat_tiny_patch16_224",
        "--img-size",
        8,
        *MODEL_KWARGS,
        "--checkpoint",
        tmp_path / "checkpoint.pth.tar",
    ]
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
    files.reader.targets[0] = target
    digits.dataset.target_transform = lambda _: target
    for dataset in (files, digits):
        with pytest.raises(InputError, match=f"has the label {target}, which is none"):
            dataset[0]


@pytest.mark.parametrize(("target", "hint"), [([0, 1], "an image has one class"), (0.0, "one class"), (7, "see --num")])
def test_why_a_label_is_no_class(folder, target, hint):
    dataset = open_dataset(args_of(folder), "train")
    dataset.transform, dataset.num_classes, dataset.reader.targets[0] = (lambda image: image), 2, target
    with pytest.raises(InputError, match=hint):
        dataset[0]


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


def test_samples_that_cannot_be_read(tmp_path):
    """What the columns do not show, such as a sample without an image."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": [as_bytes(picture(0)), None], "label": [0, 1]})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "validation.parquet")
    for kind in ("hfds", "hfids"):
        args = args_of("--dataset", f"{kind}/{tmp_path}", "--data-dir", tmp_path / "cache")
        with pytest.raises(InputError, match="cannot read "):
            contents(args, num_samples=2)


def test_torchvisions_folder(folder, tmp_path):
    assert contents(args_of(folder, "--dataset", "torch/folder")) == EXPECTED
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(folder / "train" / "dark", tmp_path / "copy" / "train" / ".ipynb_checkpoints")
    with pytest.raises(InputError, match=r"takes the hidden folder '.ipynb_checkpoints' for a class: remove it"):
        open_dataset(args_of(tmp_path / "copy", "--dataset", "torch/folder"), "train")


@pytest.mark.parametrize("split", ["trian", "train[:50%]", "validation", "test"])
def test_a_split_that_torchvisions_folder_lacks(folder, tmp_path, split):
    """timm would take the folders of splits for classes."""
    shutil.copytree(folder / "train", tmp_path / "copy" / "train")
    with pytest.raises(InputError, match=r"copy has no folder named .*, but train: name one in --train-split"):
        open_dataset(args_of(tmp_path / "copy", "--dataset", "torch/image_folder"), split)


def test_torchvisions_folder_without_splits_is_for_evaluation(folder):
    """timm would train on the images that it evaluates."""
    args = args_of(folder / "train", "--dataset", "torch/image_folder")
    assert open_dataset(args, "validation").classes == list(CLASSES)
    with pytest.raises(InputError, match="train has no folder named train or training, but"):
        open_dataset(args, "train")


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
    flags = [
        "--dataset",
        "torch/mnist",
        "--in-chans",
        1,
        "--img-size",
        8,
        *MODEL_KWARGS,
        "-j",
        0,
        "-b",
        4,
        "--epochs",
        1,
    ]
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
    argv = ["train", *flags, "--img-size", 8, *MODEL_KWARGS, "-b", 4, "--epochs", 1, "--output", tmp_path]
    assert main([str(flag) for flag in argv]) == 0
