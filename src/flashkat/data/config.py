"""The sections of the configuration for data and augmentation."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from ..errors import InputError

__all__ = ["Augmentation", "Data", "data_config"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data set, its splits, and the batches made of it. Fields have the names of timm's flags.

    Attributes:
        data_dir: the data set's folder or archive; None for data that needs none.
        dataset: its kind and name, such as ``torch/cifar10``; empty for a folder or archive.
        batch_size: images per batch and process.
        data_backend: what decodes images, "timm", "memory", "dali", "dali-cpu" or "auto"; None is auto in training, and
            timm elsewhere.
        loader_timeout: seconds that workers may take for a batch, or this process for an image; 0 waits for ever.
        img_size: side of an image in pixels; None takes the model's.
        input_size: (channels, height, width), in place of ``img_size`` and ``in_chans``.
        val_split: the split to evaluate on; empty for none.
        val_fraction: share of the training images to evaluate on, in place of a split; None takes the run's if
            ``data_dir`` is the same or has the same images.

    ``docs/reference/flags.md`` explains every field under its flag.
    """

    data_dir: str | None = None
    dataset: str = ""
    dataset_download: bool = False
    dataset_trust_remote_code: bool = False
    class_map: str = ""
    input_img_mode: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    batch_size: int = 128
    workers: int = min(4, os.cpu_count() or 1)
    data_backend: str | None = None
    loader_timeout: float = 600.0
    pin_mem: bool = True
    no_prefetcher: bool = False
    img_size: int | None = None
    in_chans: int | None = None
    input_size: Sequence[int] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    train_split: str = "train"
    val_split: str = "validation"
    val_fraction: float | None = None
    train_num_samples: int | None = None
    val_num_samples: int | None = None
    validation_batch_size: int | None = None
    epoch_repeats: float = 0.0
    worker_seeding: str = "all"
    use_multi_epochs_loader: bool = False
    fake_data: bool = False
    skip_bad_images: bool = False
    max_bad_images: float = 0.01

    @property
    def is_folder(self) -> bool:
        """Whether the images are in a folder or an archive, and not in a data set that ``dataset`` names."""
        return not self.fake_data and self.dataset.lower() in ("", "folder", "tar")

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.input_size[0] if self.input_size else self.in_chans or 3


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training changes images. Fields have the names and defaults of timm's flags."""

    no_aug: bool = False
    train_crop_mode: str | None = None
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    color_jitter_prob: float | None = None
    grayscale_prob: float | None = None
    gaussian_blur_prob: float | None = None
    aa: str | None = None
    aug_repeats: int = 0
    aug_splits: int = 0
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    resplit: bool = False
    train_interpolation: str = "random"


def data_config(
    model: nn.Module, data: Data, name: str, *, use_test_size: bool = False, crop_mode: str | None = None
) -> dict[str, Any]:
    """Resolve input size, crop, interpolation, mean and standard deviation as timm does.

    Args:
        model: gives the defaults of settings that ``data`` leaves open.
        data: the section of the configuration.
        name: the model's name, for errors.
        use_test_size: take the model's size and crop for tests, if it has them.
        crop_mode: how evaluation crops; None takes the model's.

    Raises:
        InputError: the values do not fit the model's channels.
    """
    channels = data.channels
    for flag in ("mean", "std"):
        given = getattr(data, flag)
        if given is not None and len(given) not in (1, channels):
            wanted = "1 number" if channels == 1 else f"1 or {channels} numbers"
            raise InputError(f"--{flag} takes {wanted}, not {len(given)}")
    config = resolve_data_config({**asdict(data), "crop_mode": crop_mode}, model=model, use_test_size=use_test_size)
    if config["input_size"][0] != channels and not (data.input_size or data.in_chans):
        raise InputError(f"{name} takes images of {config['input_size'][0]} channels: give --in-chans")
    for flag in ("mean", "std"):
        if len(config[flag]) != channels:  # the model's own are for other images
            config[flag] = (sum(config[flag]) / len(config[flag]),) * channels
    return config
