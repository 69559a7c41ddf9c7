"""The choice of a backend: by flags, data and device."""

import random
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from configs import evaluation_loader, training_loader
from samples import NORMALISING, SHARDS, add, args_of, as_jpeg, open_dataset

from flashkat.data.batched import backend
from flashkat.data.batched.backend import Decoding
from flashkat.data.batched.encoded import CollateEncoded, Cut, EvaluationCut, Jpeg, TrainingCut, decode_by_pillow
from flashkat.data.batched.resident import Store
from flashkat.errors import InputError, is_installed
from flashkat.system import distributed

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
    for flag in ("auto", "dali", "dali-cpu"):
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


def test_images_in_memory_need_no_shared_memory(folder, on_gpu, monkeypatch):
    on_gpu(is_small=True)
    monkeypatch.setattr("flashkat.data.loaders.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    args = args_of(folder, "-b", 4, "-j", 1, "--data-backend", "memory")
    for split, make in (("train", training_loader), ("validation", evaluation_loader)):
        assert make(open_dataset(args, split), NORMALISING, args, CPU)


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
        (["--no-prefetcher"], "it does not know --no-prefetcher"),
        (["--no-aug"], "it does not know --no-aug"),
        (["--aug-splits", 2], "it does not know --aug-splits"),
        (["--in-chans", 1], "it takes colour images only"),
    ],
)
def test_one_line_says_why_dali_is_not_taken(folder, on_gpu, flags, reason):
    on_gpu()
    _, loader = _training(folder, *flags, "--data-backend", "auto")
    assert loader.notes == [f"Pillow decodes the images, not NVIDIA DALI: {reason}"]
    with pytest.raises(InputError, match=f"--data-backend dali cannot load these images: {reason}"):
        _training(folder, *flags, "--data-backend", "dali")


def test_dali_takes_shards(shards, on_gpu):
    pytest.importorskip("webdataset")
    on_gpu()
    for flag in ("auto", "dali", "dali-cpu"):
        dataset, loader = _training(shards, *SHARDS, "--data-backend", flag)
        assert isinstance(dataset.transform, TrainingCut)
        assert isinstance(loader.loader.loader, Decoding)


def test_shards_cannot_stay_in_memory(shards, on_gpu):
    pytest.importorskip("webdataset")
    on_gpu()
    with pytest.raises(InputError, match="they are streamed, and it reads images by number"):
        _training(shards, *SHARDS, "--data-backend", "memory")


def test_other_streams_are_decoded_by_pillow(tables, tmp_path, on_gpu):
    on_gpu()
    args = args_of("--dataset", f"hfids/{tables / 'images'}", "--data-dir", tmp_path, "--data-backend", "auto")
    loader = training_loader(open_dataset(args, "validation", num_samples=6), NORMALISING, args, CPU)
    assert loader.notes == [
        "Pillow decodes the images, not NVIDIA DALI: it reads image folders, archives and WebDataset shards only"
    ]


def test_without_dali_a_line_says_how_to_install_it(folder, on_gpu):
    on_gpu(has_dali=False)
    _, loader = _training(folder, "--data-backend", "auto")
    assert "pip install '.[dali]' in the clone" in loader.notes[0]
    with pytest.raises(InputError, match=r"it is not installed \(pip install"):
        _training(folder, "--data-backend", "dali")


def test_a_cpu_says_nothing_unless_asked(folder):
    _, loader = _training(folder, "--data-backend", "auto")
    assert loader.notes == []
    with pytest.raises(InputError, match="it is for GPUs only"):
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
    for flag in ("timm", "dali", "dali-cpu"):
        # More jitter exaggerates the differences.
        args = args_of(tmp_path, "-b", 4, "-j", workers, "--data-backend", flag, "--color-jitter", 0.1, "--reprob", 0.3)
        for split, make in (("train", training_loader), ("validation", evaluation_loader)):
            loader = make(open_dataset(args, split), LARGER, args, device)
            found[flag, split] = [(images.cpu(), target.cpu()) for images, target in loader]
    for split, batches in (("train", 2), ("validation", 3)):
        pairs = [
            pair for flag in ("dali", "dali-cpu") for pair in zip(found["timm", split], found[flag, split], strict=True)
        ]
        assert len(pairs) == 2 * batches
        for (images, target), (others, other_target) in pairs:
            assert torch.equal(target, other_target)
            grey_levels = 255 * 0.3 * (images - others).abs()
            assert grey_levels.mean() < 1


class _Pillow:
    """A decoder whose pixels are Pillow's."""

    def __init__(self, batch_size, size, device, threads, has_windows, is_on_cpu):
        self.size, self.device, self.has_windows = size, device, has_windows

    def start(self, jpegs, cuts):
        assert all(isinstance(jpeg, Jpeg) for jpeg in jpegs)
        assert self.has_windows or (cuts[:, 7:] == [*self.size, 0, 0]).all()
        return lambda: decode_by_pillow(jpegs, map(Cut.of_numbers, cuts.tolist()), self.size).to(self.device)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two shards a split of JPEGs, among them a PNG, one in CMYK, and one that is cut off."""
    root = tmp_path_factory.mktemp("photographs")
    kinds = {4: {"mode": "CMYK"}, 5: {"mode": "L"}, 6: {"format": "PNG"}}
    for split in ("train", "validation"):
        for shard in range(2):
            with tarfile.open(root / f"{split}-{shard:04d}.tar", "w") as archive:
                for number in range(9):
                    data = as_jpeg(64 + 8 * (number + 9 * shard), 96, **kinds.get(number, {}))
                    add(archive, f"{shard}{number}.jpg", data[:-200] if number == 7 else data)
                    add(archive, f"{shard}{number}.cls", str(number % 2).encode())
    return root


_PHOTOGRAPHS = ["--dataset", "wds/", "--num-classes", 2, "-b", 4]
_SPLITS = {"train": "train-{0000..0001}.tar|16", "validation": "validation-{0000..0001}.tar|16"}


def _streamed(root, flag, split, workers, device, *flags):
    """Return a split's batches. A stream draws from the random states of the process."""
    args = args_of(root, *_PHOTOGRAPHS, "-j", workers, "--data-backend", flag, *flags)
    dataset = open_dataset(args, _SPLITS[split], is_training=split == "train")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    loader = {"train": training_loader, "validation": evaluation_loader}[split](dataset, LARGER, args, device)
    assert isinstance(loader.loader.loader, Decoding) == (flag == "dali")
    return [(images.cpu(), target.cpu()) for images, target in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_shards_are_cut_and_augmented_as_by_pillow(photographs, device, on_gpu, monkeypatch, split, workers):
    pytest.importorskip("webdataset")
    pytest.importorskip("triton")
    on_gpu()
    monkeypatch.setattr(backend, "Decoder", _Pillow)
    flags = ["--aa", "rand-m9-mstd0.5", "--train-interpolation", "random", "--vflip", 0.5]
    expected = _streamed(photographs, "timm", split, workers, device, *flags)
    found = _streamed(photographs, "dali", split, workers, device, *flags)
    assert sum(len(target) for _, target in expected) == 16
    for (images, target), (others, other_target) in zip(expected, found, strict=True):
        assert torch.equal(target, other_target)
        assert torch.equal(images, others)


def test_each_image_of_shards_counts_once_in_several_processes(photographs, device, on_gpu, monkeypatch):
    pytest.importorskip("webdataset")
    pytest.importorskip("triton")
    on_gpu()
    monkeypatch.setattr(backend, "Decoder", _Pillow)
    whole = _streamed(photographs, "dali", "validation", 0, device)
    monkeypatch.setattr(distributed, "size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(_streamed(photographs, "dali", "validation", 0, device))
    assert [len(share) for share in shares] == [2, 2, 2]
    for number, (images, target) in enumerate(whole):
        other, other_target = shares[number % 3][number // 3]
        assert torch.equal(images, other)
        assert torch.equal(target, other_target)
    assert [len(shares[rank][1][1]) for rank in (1, 2)] == [0, 0]


def test_a_damaged_image_of_a_shard_is_named(photographs, tmp_path, device, on_gpu, monkeypatch):
    """Its end is there, so that only decoding shows the damage."""
    pytest.importorskip("webdataset")
    on_gpu()
    monkeypatch.setattr(backend, "Decoder", _Pillow)
    (tmp_path / "validation-0000.tar").symlink_to(photographs / "validation-0000.tar")
    data = as_jpeg(64, 96)
    scan = data.index(b"\xff\xda")
    with tarfile.open(tmp_path / "validation-0001.tar", "w") as archive:
        add(archive, "cats/12.jpg", data[: scan + 5] + b"\x77" + data[scan + 6 :])
        add(archive, "cats/12.cls", b"1")
    with pytest.raises(InputError, match=r"cannot decode the image .*-0001\.tar/cats/12\.jpg: replace or remove it"):
        _streamed(tmp_path, "dali", "validation", 0, device)


@pytest.mark.skipif(not is_installed("nvidia.dali"), reason="NVIDIA DALI is not installed")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_shards_by_dali_are_near_pillows(photographs, device, monkeypatch, split):
    pytest.importorskip("webdataset")
    pytest.importorskip("triton")
    monkeypatch.setattr(backend, "has_gpu", lambda device: True)
    flags = ["--color-jitter", 0.1, "--reprob", 0.3] if split == "train" else []
    expected = _streamed(photographs, "timm", split, 2, device, *flags)
    found = _streamed(photographs, "dali", split, 2, device, *flags)
    for (images, target), (others, other_target) in zip(expected, found, strict=True):
        assert torch.equal(target, other_target)
        grey_levels = 255 * torch.tensor(LARGER["std"]).view(3, 1, 1) * (images - others).abs()
        assert grey_levels.mean() < 1
        assert split == "train" or grey_levels.max() <= 16  # augmentation widens the differences


class _Counting:
    """A decoder that counts the batches it has started."""

    started = 0

    def start(self, jpegs, cuts):
        self.started += 1
        return lambda: torch.full((len(jpegs), 8, 8, 3), int(jpegs[0].data[0]), dtype=torch.uint8)


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
