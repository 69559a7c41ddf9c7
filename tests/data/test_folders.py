from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import config_of, evaluation_loader, training_loader
from PIL import Image

from flashkat.data.datasets import check_same_classes
from flashkat.data.folders import open_split
from flashkat.errors import InputError

CPU = torch.device("cpu")
CONFIG = {
    "input_size": (3, 8, 8),
    "interpolation": "bicubic",
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def write_classes(folder, classes, count=3, seed=0):
    """Class folders of 8x8 images; returns path -> pixels."""
    generator = np.random.default_rng(seed)
    pixels = {}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            path = folder / name / f"{number}.png"
            pixels[path] = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels[path]).save(path)
    return pixels


def normalised(pixels):
    values = (pixels / 255 - np.array(CONFIG["mean"])) / np.array(CONFIG["std"])
    return torch.tensor(values.transpose(2, 0, 1), dtype=torch.float32)


def loader_of(dataset, images, batch_size, workers, device=CPU, **more):
    config = training_config()
    data = replace(config.data, workers=workers, **more)
    return evaluation_loader(dataset, images, replace(config, data=data), device, batch_size)


def training_config(*argv):
    return config_of("data", "-j", "0", *argv)


def tensor(dataset):
    dataset.transform = lambda image: image
    return dataset


# --- finding a split --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "asked"),
    [
        *((name, "val") for name in ("val", "validation", "valid", "eval")),
        *((name, "train") for name in ("train", "training")),
        ("val", "validation"),
        ("training", "training"),
        ("test", "test"),
        ("fold-3", "fold-3"),
    ],
)
def test_names_of_splits(tmp_path, folder, asked):
    write_classes(tmp_path / folder, ["cat", "dog"])
    dataset = open_split(tmp_path, asked)
    assert len(dataset) == 6
    assert Path(dataset.filename(0, absolute=True)).parent.parent == tmp_path / folder


def test_the_name_itself_comes_first(tmp_path):
    for name in ("val", "valid", "validation", "test"):
        write_classes(tmp_path / name, [name])
    for name in ("val", "valid", "validation", "test"):
        assert open_split(tmp_path, name).classes == [name]


def test_folder_of_the_classes_itself(tmp_path):
    write_classes(tmp_path, ["cat", "dog"])
    assert open_split(tmp_path, "val").classes == ["cat", "dog"]
    assert open_split(str(tmp_path), "val").classes == ["cat", "dog"]
    for split in ("train", "test"):
        with pytest.raises(InputError, match=f"has no folder named {split}"):
            open_split(tmp_path, split)


def test_training_images_are_not_taken_for_evaluation_images(tmp_path):
    write_classes(tmp_path / "train", ["cat", "dog"])
    with pytest.raises(InputError, match="has no folder named val or validation"):
        open_split(tmp_path, "val")


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path):
    pixels = write_classes(tmp_path / "val", ["n02", "n01", "n03"], count=2)
    dataset = tensor(open_split(tmp_path, "val"))
    assert dataset.classes == ["n01", "n02", "n03"]
    assert len(dataset) == 6
    for index in range(6):
        path = Path(dataset.filename(index, absolute=True))
        image, target = dataset[index]
        assert dataset.classes[target] == path.parent.name
        assert np.array_equal(np.asarray(image), pixels[path])


def test_nested_images_and_other_files(tmp_path):
    write_classes(tmp_path / "val", ["cat", "dog"])
    (tmp_path / "val" / "cat" / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "cat" / "more" / "3.JPEG")
    (tmp_path / "val" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "val" / "README.md").write_text("nor this")
    assert len(open_split(tmp_path, "val")) == 7


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "no data folder at"),
        (lambda root: root.write_text("a file"), "no data folder at"),
        (lambda root: (root / "val").mkdir(parents=True), "has no class folders: images belong in"),
        (lambda root: (root / "val" / "cat").mkdir(parents=True), "has no images in its class folders"),
        (lambda root: root.mkdir(), "has no class folders"),
    ],
)
def test_no_data(tmp_path, make, words):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=words):
        open_split(tmp_path / "data", "val")


# --- classes of two splits --------------------------------------------------------------------------------------------


def splits(root, train, val):
    write_classes(root / "train", train, count=1)
    write_classes(root / "val", val, count=1)
    return open_split(root, "train"), open_split(root, "val")


def test_same_classes(tmp_path):
    check_same_classes(*splits(tmp_path, ["cat", "dog"], ["dog", "cat"]))


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (["cat", "dog"], ["cat"], r"train has 1 classes that .*val has no images of: dog$"),
        (["cat"], ["cat", "dog"], r"val has 1 classes that .*train has no images of: dog$"),
        (["cat", "dog"], ["cat", "emu"], r"has no images of: dog$"),
        (list("abcde"), ["e"], r"train has 4 classes .*: a, b, c, d$"),
        (list("abcdefgh"), ["h"], r"train has 7 classes .*: a, b, c, d, e, \.\.\.$"),
    ],
)
def test_different_classes(tmp_path, train, val, words):
    with pytest.raises(InputError, match=words):
        check_same_classes(*splits(tmp_path, train, val))


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 17), (40, 9)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK"])
def test_modes_and_sizes(tmp_path, mode, size):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new(mode, size, 1).save(tmp_path / "val" / "cat" / ("0.jpg" if mode == "CMYK" else "0.png"))
    (images, target), *rest = loader_of(open_split(tmp_path, "val"), CONFIG, 4, 0)
    assert not rest
    assert images.shape == (1, 3, 8, 8)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert target.tolist() == [0]


def test_grey_and_transparent_images_have_their_colours(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8), 100).save(tmp_path / "val" / "cat" / "0.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 255)).save(tmp_path / "val" / "cat" / "1.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 150, 50])
    palette.save(tmp_path / "val" / "cat" / "2.png")
    dataset = tensor(open_split(tmp_path, "val"))
    assert [dataset[index][0].getpixel((4, 4)) for index in range(3)] == [(100,) * 3, (10, 20, 30), (200, 150, 50)]


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_damaged_image_is_an_error_that_names_it(tmp_path, damage):
    write_classes(tmp_path / "val", ["cat", "dog"])
    broken = tmp_path / "val" / "dog" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes({"text": b"not a picture", "empty": b"", "truncated": whole[: len(whole) // 2]}[damage])
    dataset = open_split(tmp_path, "val")
    with pytest.raises(InputError) as caught:
        list(loader_of(dataset, CONFIG, 2, 0))
    assert str(caught.value) == f"cannot decode the image {broken}: replace or remove it"


def test_an_image_that_vanished_is_an_error_that_names_it(tmp_path):
    write_classes(tmp_path / "val", ["cat", "dog"])
    dataset = open_split(tmp_path, "val")
    gone = Path(dataset.filename(4, absolute=True))
    gone.unlink()
    with pytest.raises((InputError, FileNotFoundError), match=str(gone)):
        dataset[4]


# --- loaders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(tmp_path, workers):
    pixels = write_classes(tmp_path / "val", ["cat", "dog", "emu"])
    dataset = open_split(tmp_path, "val")
    loader = loader_of(dataset, CONFIG, 4, workers)
    batches = [(images.clone(), target.clone()) for images, target in loader]
    assert [len(target) for _, target in batches] == [4, 4, 1]
    assert len(loader) == 3
    assert torch.cat([target for _, target in batches]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    expected = [normalised(pixels[Path(dataset.filename(index, absolute=True))]) for index in range(9)]
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), torch.stack(expected))


def test_evaluation_crops_the_centre(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[4:12, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "val" / "cat" / "0.png")
    config = {**CONFIG, "crop_pct": 0.5, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    ((images, _),) = loader_of(open_split(tmp_path, "val"), config, 1, 0)
    assert images.min() == 1
    ((images, _),) = loader_of(open_split(tmp_path, "val"), {**config, "crop_pct": 1.0}, 1, 0)
    assert images[0, 0, 0, 0] == 0


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest"])
def test_evaluation_resizes_as_told(tmp_path, name):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    image.save(tmp_path / "val" / "cat" / "0.png")
    config = {**CONFIG, "interpolation": name}
    ((images, _),) = loader_of(open_split(tmp_path, "val"), config, 1, 0)
    expected = image.resize((8, 8), Image.Resampling[name.upper()])
    torch.testing.assert_close(images[0], normalised(np.asarray(expected)))


def test_training_sees_shuffled_images_and_drops_the_rest(tmp_path):
    pixels = write_classes(tmp_path / "train", ["cat", "dog"], count=5)
    dataset = open_split(tmp_path, "train")
    torch.manual_seed(0)
    loader = training_loader(dataset, CONFIG, training_config("-b", "4", "--no-aug"), CPU)
    assert len(loader) == 2
    known = torch.stack([normalised(value) for value in pixels.values()])
    epochs = []
    for _ in range(4):
        seen = torch.cat([images.clone() for images, _ in loader])
        assert len(seen) == 8
        distances = (seen[:, None] - known[None]).abs().amax((2, 3, 4))
        assert distances.amin(1).max() < 1e-5
        epochs.append(distances.argmin(1).tolist())
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert any(epoch != sorted(epoch) for epoch in epochs)


def test_training_images_keep_their_class(tmp_path):
    pixels = write_classes(tmp_path / "train", ["cat", "dog"], count=4)
    classes = [path.parent.name for path in pixels]
    known = torch.stack([normalised(value) for value in pixels.values()])
    dataset = open_split(tmp_path, "train")
    ((images, target),) = training_loader(dataset, CONFIG, training_config("-b", "8", "--no-aug"), CPU)
    nearest = (images[:, None] - known[None]).abs().amax((2, 3, 4)).argmin(1)
    assert [dataset.classes[index] for index in target] == [classes[index] for index in nearest]


def test_training_images_are_augmented(tmp_path):
    write_classes(tmp_path / "train", ["cat"], count=4)
    loader = training_loader(open_split(tmp_path, "train"), CONFIG, training_config("-b", "4"), CPU)
    first, second = (next(iter(loader))[0].sort(0).values for _ in range(2))
    assert first.shape == (4, 3, 8, 8)
    assert not torch.allclose(first, second)


def test_flips_always_and_never(tmp_path):
    (pixels,) = write_classes(tmp_path / "train", ["cat"], count=1).values()
    dataset = open_split(tmp_path, "train")
    flags = ["-b", "1", "--scale", "1", "1", "--ratio", "1", "1", "--color-jitter", "0"]
    for hflip, vflip, expected in ((0, 0, pixels), (1, 0, pixels[:, ::-1]), (0, 1, pixels[::-1])):
        args = training_config(*flags, "--hflip", str(hflip), "--vflip", str(vflip))
        ((images, _),) = training_loader(dataset, CONFIG, args, CPU)
        torch.testing.assert_close(images[0], normalised(expected))


@pytest.mark.parametrize("batch", [7, 100])
def test_a_batch_larger_than_the_training_set(tmp_path, batch):
    write_classes(tmp_path / "train", ["cat", "dog"])
    dataset = open_split(tmp_path, "train")
    with pytest.raises(InputError, match=f"has 6 images, fewer than a batch of {batch}: give a smaller --batch-size"):
        training_loader(dataset, CONFIG, training_config("-b", str(batch)), CPU)
    assert len(training_loader(dataset, CONFIG, training_config("-b", "6"), CPU)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [[], ["--no-pin-mem"], ["--no-prefetcher"], ["--channels-last"]], ids=str)
def test_batches_stay_whole_on_a_gpu_that_is_behind(tmp_path, flags):
    """The host takes all batches while the GPU has yet to look at the first one."""
    pixels = write_classes(tmp_path / "train", ["cat", "dog"], count=64)
    known = torch.stack([normalised(value) for value in pixels.values()])
    classes = torch.tensor([int(path.parent.name == "dog") for path in pixels])
    gpu = torch.device("cuda")
    loader = training_loader(open_split(tmp_path, "train"), CONFIG, training_config("-b", "4", "--no-aug", *flags), gpu)
    seen, targets = [], []
    for _ in range(2):
        for images, target in loader:
            torch.cuda._sleep(2 * 10**7)
            seen.append(images * 1)
            targets.append(target * 1)
    nearest = (torch.cat(seen).cpu()[:, None] - known[None]).abs().amax((2, 3, 4))
    assert nearest.amin(1).max() < 1e-5
    assert torch.equal(nearest.argmin(1).bincount(), torch.full((128,), 2))
    assert torch.equal(classes[nearest.argmin(1)], torch.cat(targets).cpu())
