"""Batches of images: shapes, order, augmentation, layout, views."""

import gc
import math
import multiprocessing
import os
import random
import signal
import sys
import time
import types
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import evaluation_loader, training_loader
from PIL import Image
from processes import forked
from samples import (
    CONFIG,
    CPU,
    EXPECTED,
    NORMALISING,
    SHARDS,
    args_of,
    contents,
    loader_of,
    normalised,
    open_dataset,
    write_classes,
)

from flashkat.data import loaders
from flashkat.data.batched import backend
from flashkat.data.batched.batches import Drawing
from flashkat.data.datasets import image_count
from flashkat.data.folders import open_split
from flashkat.data.loaders import Batches
from flashkat.errors import InputError
from flashkat.system import distributed
from flashkat.system.device import Runtime
from flashkat.system.stalls import Reads

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GREY = {**CONFIG, "input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,)}


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(tmp_path, workers):
    pixels = write_classes(tmp_path / "val", ["cat", "dog", "emu"])
    dataset = open_split(tmp_path, "val")
    loader = loader_of(dataset, NORMALISING, 4, workers)
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
    config = {**NORMALISING, "crop_pct": 0.5, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    ((images, _),) = loader_of(open_split(tmp_path, "val"), config, 1, 0)
    assert images.min() == 1
    ((images, _),) = loader_of(open_split(tmp_path, "val"), {**config, "crop_pct": 1.0}, 1, 0)
    assert images[0, 0, 0, 0] == 0


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest"])
def test_evaluation_resizes_as_told(tmp_path, name):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    image.save(tmp_path / "val" / "cat" / "0.png")
    config = {**NORMALISING, "interpolation": name}
    ((images, _),) = loader_of(open_split(tmp_path, "val"), config, 1, 0)
    expected = image.resize((8, 8), Image.Resampling[name.upper()])
    torch.testing.assert_close(images[0], normalised(np.asarray(expected)))


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_training_without_augmentation_resizes_as_the_model_does(tmp_path, name):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for number in range(4):
        image.save(tmp_path / "train" / "cat" / f"{number}.png")
    config = {**NORMALISING, "interpolation": name}
    args = args_of("data", "-b", "4", "--no-aug", "--train-interpolation", "random")
    ((images, _),) = training_loader(open_split(tmp_path, "train"), config, args, CPU)
    expected = normalised(np.asarray(image.resize((8, 8), Image.Resampling[name.upper()])))
    torch.testing.assert_close(images, expected.expand_as(images))


def test_training_sees_shuffled_images_and_drops_the_rest(tmp_path):
    pixels = write_classes(tmp_path / "train", ["cat", "dog"], count=5)
    dataset = open_split(tmp_path, "train")
    torch.manual_seed(0)
    loader = training_loader(dataset, NORMALISING, args_of("data", "-b", "4", "--no-aug"), CPU)
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
    ((images, target),) = training_loader(dataset, NORMALISING, args_of("data", "-b", "8", "--no-aug"), CPU)
    nearest = (images[:, None] - known[None]).abs().amax((2, 3, 4)).argmin(1)
    assert [dataset.classes[index] for index in target] == [classes[index] for index in nearest]


def test_a_batch_for_each_process(tmp_path, monkeypatch):
    write_classes(tmp_path / "train", ["cat", "dog"])
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(
        InputError, match=r"train has 6 images, fewer than a batch of 4 for each of 2 processes: .*fewer"
    ):
        training_loader(open_split(tmp_path, "train"), CONFIG, args_of("data", "-b", 4), CPU)


def test_training_images_are_augmented(tmp_path):
    write_classes(tmp_path / "train", ["cat"], count=4)
    loader = training_loader(open_split(tmp_path, "train"), NORMALISING, args_of("data", "-b", "4"), CPU)
    first, second = (next(iter(loader))[0].sort(0).values for _ in range(2))
    assert first.shape == (4, 3, 8, 8)
    assert not torch.allclose(first, second)


def test_flips_always_and_never(tmp_path):
    (pixels,) = write_classes(tmp_path / "train", ["cat"], count=1).values()
    dataset = open_split(tmp_path, "train")
    flags = ["-b", "1", "--scale", "1", "1", "--ratio", "1", "1", "--color-jitter", "0"]
    for hflip, vflip, expected in ((0, 0, pixels), (1, 0, pixels[:, ::-1]), (0, 1, pixels[::-1])):
        args = args_of("data", *flags, "--hflip", str(hflip), "--vflip", str(vflip))
        ((images, _),) = training_loader(dataset, NORMALISING, args, CPU)
        torch.testing.assert_close(images[0], normalised(expected))


@pytest.mark.parametrize("batch", [7, 100])
def test_a_batch_larger_than_the_training_set(tmp_path, batch):
    write_classes(tmp_path / "train", ["cat", "dog"])
    dataset = open_split(tmp_path, "train")
    with pytest.raises(InputError, match=f"has 6 images, fewer than a batch of {batch}: give a smaller --batch-size"):
        training_loader(dataset, NORMALISING, args_of("data", "-b", str(batch)), CPU)
    assert len(training_loader(dataset, NORMALISING, args_of("data", "-b", "6"), CPU)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [[], ["--no-pin-mem"], ["--no-prefetcher"], ["--channels-last"]], ids=str)
def test_batches_stay_whole_on_a_gpu_that_is_behind(tmp_path, flags):
    """The host takes all batches while the GPU has yet to look at the first one."""
    pixels = write_classes(tmp_path / "train", ["cat", "dog"], count=64)
    known = torch.stack([normalised(value) for value in pixels.values()])
    classes = torch.tensor([int(path.parent.name == "dog") for path in pixels])
    gpu = torch.device("cuda")
    loader = training_loader(
        open_split(tmp_path, "train"), NORMALISING, args_of("data", "-b", "4", "--no-aug", *flags), gpu
    )
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


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 17), (40, 9)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK"])
def test_modes_and_sizes(tmp_path, mode, size):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new(mode, size, 1).save(tmp_path / "val" / "cat" / ("0.jpg" if mode == "CMYK" else "0.png"))
    (images, target), *rest = loader_of(open_split(tmp_path, "val"), NORMALISING, 4, 0)
    assert not rest
    assert images.shape == (1, 3, 8, 8)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert target.tolist() == [0]


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


def test_streams_of_several_processes_need_not_fill_their_batches(shards, monkeypatch):
    pytest.importorskip("webdataset")
    args = args_of(shards, *SHARDS, "-b", 8)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    dataset = open_dataset(args, args.data.train_split, is_training=True)
    dataset.reader.dist_num_replicas = 2
    assert image_count(dataset) == 16
    assert len(training_loader(dataset, CONFIG, args, CPU)) == 1


@pytest.fixture
def given(monkeypatch):
    """What timm and PyTorch were told last, under the names of their arguments."""
    given = {}

    def told(make, name):
        def make_and_note(*args, **kwargs):
            given.update(kwargs)
            return make(*args, **kwargs)

        monkeypatch.setattr(f"flashkat.data.{name}", make_and_note)

    told(backend.create_transform, "batched.backend.create_transform")
    told(torch.utils.data.DataLoader, "order.DataLoader")
    monkeypatch.setattr(loaders, "Prefetcher", lambda loader, *args, **kwargs: given.update(kwargs))
    return given


@pytest.mark.parametrize(
    ("device", "flags", "pinned"), [("cuda", [], True), ("cuda", ["--no-pin-mem"], False), ("cpu", [], False)]
)
def test_memory_is_pinned_for_gpus(folder, given, monkeypatch, device, flags, pinned):
    monkeypatch.setattr(backend, "has_gpu", lambda device: False)  # asks the driver
    args = args_of(folder, *flags)
    training_loader(open_dataset(args, "train"), CONFIG, args, torch.device(device))
    assert given.pop("pin_memory") == pinned
    evaluation_loader(open_dataset(args, "validation"), CONFIG, args, torch.device(device))
    assert given["pin_memory"] == pinned


@pytest.mark.parametrize(
    "flags",
    [
        ["--aa", "rand-m9-mstd0.5-inc1", "-j", 0],
        ["--aa", "original", "-j", 2, "--reprob", 0.5],
        ["--color-jitter", 0.4, "--grayscale-prob", 0.3, "-j", 1],
        [*SHARDS, "--aa", "v0", "-j", 1],
    ],
    ids=["randaugment", "autoaugment", "jitter", "stream"],
)
def test_a_gpu_augments_to_the_same_batches(request, monkeypatch, flags):
    pytest.importorskip("triton")
    if "wds/" in flags:
        pytest.importorskip("webdataset")
    source = request.getfixturevalue("shards" if "wds/" in flags else "folder")
    args = args_of(source, *flags, "-b", 4, "--train-interpolation", "random")

    def batches(on_gpu):
        monkeypatch.setattr(backend, "has_gpu", lambda device: on_gpu)
        torch.manual_seed(0)  # the seed of a stream's random numbers
        np.random.seed(0)
        random.seed(0)
        dataset = open_dataset(args, args.data.train_split)
        loader = training_loader(dataset, NORMALISING, args, DEVICE)
        assert isinstance(dataset.transform, Drawing) == on_gpu
        return [(images.cpu(), target.cpu()) for images, target in loader]

    expected, found = batches(False), batches(True)
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_workers_keep_what_a_gpu_cannot_augment(folder, monkeypatch):
    monkeypatch.setattr(backend, "has_gpu", lambda device: True)
    for flags in (["--aa", "3a"], ["--no-aug"], ["--no-prefetcher"], ["--in-chans", 1], ["--aug-splits", 2]):
        args = args_of(folder, "-b", 4, "-j", 0, *flags)
        dataset = open_dataset(args, "train")
        training_loader(dataset, CONFIG if "--in-chans" not in flags else GREY, args, CPU)
        assert not isinstance(dataset.transform, Drawing), flags


def print_parents_of_workers(folder):
    multiprocessing.set_start_method("forkserver", force=True)
    args = args_of(folder, "-b", 4, "-j", 1)
    loader = training_loader(open_dataset(args, "train"), CONFIG, args, CPU)
    next(iter(loader))
    for child in multiprocessing.active_children():
        parent = int(Path(f"/proc/{child.pid}/stat").read_text().split()[3])
        print("this one" if parent == os.getpid() else "another one")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems start processes anew")
def test_workers_are_children_of_the_training_process(folder, tmp_path):
    """Also where the program's default is a server that forks. A killed run would leave its workers behind."""
    done = forked(tmp_path, print_parents_of_workers, (str(folder),), [{}])
    assert done.stdout == "this one\n", done.stderr


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


class Sized(torch.utils.data.Dataset):
    """Tensors of several sizes and dtypes, the largest of which is larger than a pipe."""

    tensors = (
        torch.arange(6).view(2, 3).T,
        torch.zeros(0, 4),
        torch.tensor(2.5, dtype=torch.float64),
        torch.ones(2**16 + 1, dtype=torch.uint8),
    )

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return [each.clone() for each in self.tensors]


def test_small_tensors_come_without_shared_memory(folder, given):
    args = args_of(folder, "-j", 1)
    training_loader(open_dataset(args, "train"), CONFIG, args, CPU)
    loader = torch.utils.data.DataLoader(Sized(), None, num_workers=1, worker_init_fn=given["worker_init_fn"])
    for found in loader:
        assert [each.is_shared() for each in found] == [False, False, False, True]
        for tensor, expected in zip(found, Sized.tensors, strict=True):
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)
            tensor.add_(1)  # an array that cannot be written to would warn


# --- workers that stop ------------------------------------------------------------------------------------------------


class Stuck(torch.utils.data.Dataset):
    """A data set whose workers are killed, or wait for ever."""

    def __init__(self, kill):
        self.kill = kill

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)


@pytest.mark.parametrize(("kill", "words"), [(True, "is killed by signal|exited unexpectedly"), (False, "timed out")])
def test_a_worker_that_gives_nothing_is_an_error(kill, words):
    loader = torch.utils.data.DataLoader(Stuck(kill), num_workers=1, timeout=60 if kill else 2)
    with pytest.raises(InputError, match=rf"loading images stopped: DataLoader .*({words})"):
        next(iter(Batches(loader, Runtime(), CPU)))


def test_a_worker_that_dies_at_once_is_an_error():
    """PyTorch finds it while it starts the other ones."""

    class Dying:
        def __iter__(self):
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")

    with pytest.raises(InputError, match=r"loading images stopped: DataLoader worker .* is killed by signal: Killed;"):
        next(iter(Batches(Dying(), Runtime(), CPU)))


@pytest.fixture
def stalled(tmp_path, monkeypatch):
    """A folder of images, of which one has become a pipe that nobody writes to. Opening it waits for ever."""
    write_classes(tmp_path / "val", ["cat", "dog"])
    write_classes(tmp_path / "train", ["cat", "dog"])

    def stall():
        for split in ("val", "train"):
            path = tmp_path / split / "dog" / "1.png"
            path.unlink()
            os.mkfifo(path)

    monkeypatch.setattr("flashkat.data.scan._ordinary", os.open)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # seconds until a worker is killed
        yield tmp_path, stall
        gc.collect()  # ends workers that still wait, and not while a later test needs their signals


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")


@needs_pipes
@pytest.mark.parametrize("flags", [[], ["--skip-bad-images", "--max-bad-images", 1]], ids=["", "skips bad images"])
@pytest.mark.parametrize(("workers", "words"), [(0, "stalled: no answer for 2 s"), (2, r"timed out .* worker \d at")])
def test_a_read_that_stalls_names_its_file(stalled, workers, words, flags):
    root, stall = stalled
    args = args_of(root, "-j", workers, "--loader-timeout", 2, *flags)
    loaders = [
        evaluation_loader(open_dataset(args, "validation"), CONFIG, args, CPU),
        training_loader(open_dataset(args, "train", is_training=True), CONFIG, args, CPU),
    ]
    stall()
    for loader, split in zip(loaders, ("val", "train"), strict=True):
        with pytest.raises(InputError, match=words) as error:
            list(loader)
        assert str(root / split / "dog" / "1.png") in str(error.value)
        assert "--loader-timeout" in str(error.value)


@needs_pipes
@pytest.mark.parametrize("workers", [0, 1])
def test_a_pipe_that_takes_the_place_of_an_image_is_an_error_at_once(stalled, monkeypatch, workers):
    monkeypatch.undo()
    root, stall = stalled
    args = args_of(root, "-j", workers)
    loader = evaluation_loader(open_dataset(args, "validation"), CONFIG, args, CPU)
    stall()
    with pytest.raises(InputError, match=rf"{root / 'val' / 'dog' / '1.png'} is no ordinary file"):
        list(loader)


def test_a_worker_that_was_killed_names_its_file(tmp_path, monkeypatch):
    write_classes(tmp_path / "val", ["cat", "dog"])
    # PyTorch raises its error in whatever runs. A finaliser swallows it, and then this limit ends the wait.
    args = args_of(tmp_path, "-j", 1, "--loader-timeout", 60)
    dataset = open_dataset(args, "validation")
    monkeypatch.setattr(dataset, "_read", lambda index: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match=rf"loading images stopped: .*worker 0 at {dataset.name(0)}; try"):
        list(evaluation_loader(dataset, CONFIG, args, CPU))


def test_a_long_list_of_stalled_workers_is_cut(tmp_path):
    write_classes(tmp_path / "val", ["cat", "dog"])
    dataset = open_split(tmp_path, "val")
    assert dataset.being_read() == ""
    dataset.reads = Reads(6, 60)
    dataset.reads._at.fill_(1)
    assert dataset.being_read().startswith(f"worker 0 at {dataset.name(1)}, worker 1 at")
    assert dataset.being_read().endswith(", 2 more")


def test_repeated_augmentation_that_leaves_no_batch(tmp_path, monkeypatch):
    """timm's sampler takes a multiple of 256 images: 512 of these, 170 for each process."""
    write_classes(tmp_path / "train", ["cat"], count=600)
    monkeypatch.setattr("flashkat.system.distributed.size", lambda: 3)
    config = args_of(tmp_path, "-b", 180, "-j", 0, "--aug-repeats", 3)
    with pytest.raises(InputError, match=r"--aug-repeats leaves fewer images .* than a batch of 180: give a smaller"):
        training_loader(open_dataset(config, "train"), CONFIG, config, CPU)


def test_too_little_shared_memory_is_said_before_workers_start(folder, monkeypatch):
    monkeypatch.setattr("flashkat.data.loaders.shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    config = args_of(folder, "-j", 2)
    with pytest.raises(InputError, match=r"2 workers hold batches of .* give fewer --workers"):
        training_loader(open_dataset(config, "train"), CONFIG, config, CPU)
    assert training_loader(open_dataset(config, "train"), CONFIG, args_of(folder, "-j", 0), CPU)


def test_processes_of_a_machine_share_its_memory(folder, monkeypatch):
    config = args_of(folder, "-j", 2)
    monkeypatch.setattr("flashkat.data.loaders._PREFETCHED", 1)
    monkeypatch.setattr("flashkat.data.loaders.distributed.size", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    enough = 2 * config.data.batch_size * math.prod(CONFIG["input_size"])
    monkeypatch.setattr("flashkat.data.loaders.shutil.disk_usage", lambda path: types.SimpleNamespace(free=enough))
    with pytest.raises(InputError, match=r"^16 workers hold batches"):
        evaluation_loader(open_dataset(config, "val"), CONFIG, config, CPU)


def test_the_host_waits_for_all_steps_but_the_last_three(monkeypatch):
    class Event:
        def __init__(self, blocking):
            assert blocking
            self.was_awaited = False

        def record(self, stream):
            made.append(self)

        def synchronize(self):
            self.was_awaited = True

    made, used = [], deque()
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: None)
    for number in range(1, 9):
        loaders._wait_for_earlier(used, torch.device("cuda"))
        assert [each.was_awaited for each in made] == [True] * max(0, number - 3) + [False] * min(3, number)


@pytest.mark.gpu
def test_the_host_is_at_most_three_steps_ahead_of_the_gpu():
    device, ends = torch.device("cuda"), []
    batches = [(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)) for _ in range(12)]
    for _ in Batches(batches, Runtime(), device):
        assert all(end.query() for end in ends[:-3])
        torch.cuda._sleep(10**7)
        ends.append(torch.cuda.Event())
        ends[-1].record()
    assert len(ends) == 12
