"""The choice of a backend: by flags, data and device."""

import numpy as np
import pytest
import torch
from configs import evaluation_loader, training_loader
from samples import NORMALISING, SHARDS, args_of, as_jpeg, open_dataset

from flashkat.data.batched import backend
from flashkat.data.batched.backend import Decoding
from flashkat.data.batched.encoded import CollateEncoded, Cut, EvaluationCut, Jpeg, TrainingCut
from flashkat.data.batched.resident import Store
from flashkat.errors import InputError, is_installed

CPU = torch.device("cpu")
LARGER = {**NORMALISING, "input_size": (3, 32, 32)}


@pytest.fixture
def on_gpu(monkeypatch):
    """Take the CPU for a GPU, DALI for installed, and data sets for large, unless told otherwise."""

    def take(has_dali=True, is_small=False):
        monkeypatch.setattr(backend, "has_gpu", lambda device: True)
        monkeypatch.setattr(backend, "is_installed", lambda module: has_dali)
        if not is_small:
            monkeypatch.setattr(backend, "read_all", lambda *args: None)

    return take


def _training(source, *flags):
    args = args_of(source, "-b", 4, "-j", 0, *flags)
    dataset = open_dataset(args, args.data.train_split)
    return dataset, training_loader(dataset, NORMALISING, args, CPU)


def _evaluation(source, *flags):
    args = args_of(source, "-b", 4, "-j", 0, *flags)
    dataset = open_dataset(args, "validation")
    return dataset, evaluation_loader(dataset, NORMALISING, args, CPU)


def test_dali_is_taken_where_it_can_be(folder, on_gpu):
    on_gpu()
    for flag in ("auto", "dali"):
        dataset, loader = _training(folder, "--data-backend", flag)
        assert isinstance(dataset.transform, TrainingCut)
        assert isinstance(loader.loader.loader, Decoding)
        dataset, loader = _evaluation(folder, "--data-backend", flag)
        assert isinstance(dataset.transform, EvaluationCut)
        assert isinstance(loader.loader.loader, Decoding)


def test_small_images_stay_in_memory(folder, on_gpu):
    on_gpu(is_small=True)
    for flag in ("auto", "memory"):
        for make in (_training, _evaluation):
            _, loader = make(folder, "--data-backend", flag)
            assert isinstance(loader.loader.loader.decoder, Store)
    assert _training(folder, "--data-backend", "auto")[1].notes == ["All images are in the GPU's memory: 0 MiB"]


def test_large_images_cannot_stay_in_memory(folder, on_gpu):
    on_gpu()
    with pytest.raises(InputError, match="--data-backend memory cannot load these images: they differ in size"):
        _training(folder, "--data-backend", "memory")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("flags", [["--aa", "rand-m9-mstd0.5", "--reprob", 0.3], ["--epoch-repeats", 2]])
def test_batches_from_memory_are_those_of_timms_loader(folder, device, on_gpu, workers, flags):
    pytest.importorskip("triton")
    on_gpu(is_small=True)
    found = {}
    for flag in ("timm", "memory"):
        args = args_of(folder, "-b", 4, "-j", workers, "--data-backend", flag, *flags)
        for split, make in (("train", training_loader), ("validation", evaluation_loader)):
            loader = make(open_dataset(args, split), NORMALISING, args, device)
            found[flag, split] = [(images.cpu(), target.cpu()) for images, target in loader]
    for split in ("train", "validation"):
        for one, other in zip(found["timm", split], found["memory", split], strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("flags", [["--data-backend", "timm"], []])
def test_timms_loader_is_taken_where_it_is_asked_for(folder, on_gpu, flags):
    on_gpu()
    for make in (_training, _evaluation):
        dataset, loader = make(folder, *flags)
        assert not isinstance(dataset.transform, (TrainingCut, EvaluationCut))
        assert loader.notes == []


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--skip-bad-images"], "it cannot replace images, as --skip-bad-images asks for"),
        (["--aa", "3a"], "it does not know GaussianBlurRand"),
        (["--train-crop-mode", "rkrc"], "it does not know the crop ResizeKeepRatio"),
        (["--no-prefetcher"], "it takes colour images, the prefetcher and one view of each"),
    ],
)
def test_one_line_says_why_dali_is_not_taken(folder, on_gpu, flags, reason):
    on_gpu()
    _, loader = _training(folder, *flags, "--data-backend", "auto")
    assert loader.notes == [f"Pillow decodes the images, not NVIDIA DALI: {reason}"]
    with pytest.raises(InputError, match=f"--data-backend dali cannot load these images: {reason}"):
        _training(folder, *flags, "--data-backend", "dali")


def test_streams_are_decoded_by_pillow(shards, on_gpu):
    pytest.importorskip("webdataset")
    on_gpu()
    _, loader = _training(shards, *SHARDS, "--data-backend", "auto", "-j", 1)
    assert loader.notes == ["Pillow decodes the images, not NVIDIA DALI: it reads image folders and archives only"]


def test_without_dali_a_line_says_how_to_install_it(folder, on_gpu):
    on_gpu(has_dali=False)
    _, loader = _training(folder, "--data-backend", "auto")
    assert "pip install 'flashkat[dali]'" in loader.notes[0]
    with pytest.raises(InputError, match=r"it is not installed \(pip install"):
        _training(folder, "--data-backend", "dali")


def test_a_cpu_says_nothing_unless_asked(folder):
    _, loader = _training(folder, "--data-backend", "auto")
    assert loader.notes == []
    with pytest.raises(InputError, match="it decodes on GPUs only"):
        _training(folder, "--data-backend", "dali")


@pytest.mark.skipif(not is_installed("nvidia.dali"), reason="NVIDIA DALI is not installed")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_timms_loader(tmp_path, device, monkeypatch, workers):
    """The same images in the same order with the same augmentation, but for a few grey levels."""
    pytest.importorskip("triton")
    monkeypatch.setattr(backend, "has_gpu", lambda device: True)
    for split in ("train", "validation"):
        for name in ("cats", "dogs"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(5):
                suffix = ("jpg", "png")[number == 3]
                data = as_jpeg(64 + 8 * number, 96, format={"jpg": "JPEG", "png": "PNG"}[suffix])
                (tmp_path / split / name / f"{number}.{suffix}").write_bytes(data)
    found = {}
    for flag in ("timm", "dali"):
        # More jitter exaggerates the differences.
        args = args_of(tmp_path, "-b", 4, "-j", workers, "--data-backend", flag, "--color-jitter", 0.1, "--reprob", 0.3)
        for split, make in (("train", training_loader), ("validation", evaluation_loader)):
            loader = make(open_dataset(args, split), LARGER, args, device)
            found[flag, split] = [(images.cpu(), target.cpu()) for images, target in loader]
    for split, batches in (("train", 2), ("validation", 3)):
        pairs = list(zip(found["timm", split], found["dali", split], strict=True))
        assert len(pairs) == batches
        for (images, target), (others, other_target) in pairs:
            assert torch.equal(target, other_target)
            grey_levels = 255 * 0.3 * (images - others).abs()
            assert grey_levels.mean() < 1


class _Counting:
    """A decoder that counts the batches it has started."""

    started = 0

    def start(self, jpegs):
        self.started += 1
        return lambda: torch.full((len(jpegs), 8, 8, 3), int(jpegs[0][0].data[0]), dtype=torch.uint8)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_a_batch_is_decoded_while_the_one_before_is_used(number):
    pytest.importorskip("triton")
    cut = Cut((0, 0, 4, 4), (8, 8))
    jpegs = [Jpeg(np.full(3, index, dtype=np.uint8), "x.jpg", (4, 4)) for index in range(number)]
    loader = [CollateEncoded((8, 8))([(((jpeg, cut), []), 0)]) for jpeg in jpegs]
    decoder, seen = _Counting(), []
    for images, _ in Decoding(loader, decoder):
        assert decoder.started == min(len(seen) + 2, number)
        seen.append(int(images.to(torch.device("cpu"))[0, 0, 0, 0]))
    assert seen == list(range(number))
