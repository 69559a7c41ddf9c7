"""How far apart are one model's logits and top-1 when each data backend loads the images?

The backends load the same images of an evaluation split, resize them and cut out the centre. The first listed one is
the reference. Logits are those of the model in float32.

  python -m benchmarks.backends.agreement DIR --checkpoint FILE
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flashkat.data.config import Data, data_config
from flashkat.data.datasets import open_dataset
from flashkat.data.loaders import evaluation_loader
from flashkat.evaluation.config import Trained
from flashkat.evaluation.restore import restore
from flashkat.models.config import Model
from flashkat.system.device import Runtime, resolve_device

from ..parts.common import Row, arguments, finish, show, target

__all__ = ["chosen", "collect", "targets"]

_BACKENDS = ("timm", "dali", "dali-cpu", "memory")
_TOP1 = 0.1
_QUALITY = 95
_SPLIT = "val"


def collect(checkpoint: str, folder: Path, backends: Sequence[str], device: torch.device, batch: int) -> list[Row]:
    """Evaluate a checkpoint with each backend. Differences are from the first one.

    Args:
        checkpoint: file of a trained model.
        folder: folder of the data set, of which the split ``val`` is evaluated.
        backends: data backends.
        device: where the model computes.
        batch: images of a batch.

    Raises:
        InputError: a backend cannot load the images, or the checkpoint cannot be used.
    """
    rows: list[Row] = []
    first: Tensor | None = None
    for backend in backends:
        print(backend, file=sys.stderr, flush=True)
        logits, labels = _logits(checkpoint, folder, backend, device, batch)
        first = logits if first is None else first
        apart = (logits - first).abs()
        rows.append(
            {
                "backend": backend,
                "images": len(labels),
                "top1": round(100 * (logits.argmax(1) == labels).double().mean().item(), 4),
                "other_answers": int((logits.argmax(1) != first.argmax(1)).sum()),
                "largest_difference": round(apart.max().item(), 5),
                "mean_difference": round(apart.mean().item(), 6),
                "spread_of_logits": round(first.std().item(), 4),
            }
        )
    return rows


@torch.inference_mode()
def _logits(checkpoint: str, folder: Path, backend: str, device: torch.device, batch: int) -> tuple[Tensor, Tensor]:
    """Return logits (images, classes) in float32 and labels (images,), on the CPU."""
    data = Data(data_dir=f"{folder}", batch_size=batch, data_backend=backend)
    found = restore(Model(model=None), Trained(checkpoint=checkpoint), data)
    dataset, runtime = open_dataset(found.data, _SPLIT), Runtime()
    loader = evaluation_loader(dataset, data_config(found.module, found.data, found.name), found.data, runtime, device)
    model = found.module.to(device).eval()
    batches = [(model(images).float().cpu(), labels.cpu()) for images, labels in loader]
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


@contextlib.contextmanager
def chosen(folder: Path, most: int, side: int | None) -> Iterator[Path]:
    """Give a data set whose split ``val`` has copies of images, evenly spread over the classes.

    It is removed when the context ends.

    Args:
        folder: one folder for each class.
        most: the number of images at most.
        side: enlarge the copies to so many pixels a side, as JPEGs; None links to the images as they are.
    """
    classes = [each for each in sorted(folder.iterdir()) if each.is_dir()]
    with tempfile.TemporaryDirectory() as copies:
        for of_class in classes:
            place = Path(copies) / _SPLIT / of_class.name
            place.mkdir(parents=True)
            for image in sorted(each for each in of_class.iterdir() if each.is_file())[: most // len(classes)]:
                if side is None:
                    (place / image.name).symlink_to(image.resolve())
                    continue
                with Image.open(image) as opened:
                    large = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                large.save(place / f"{image.stem}.jpg", quality=_QUALITY)
        yield Path(copies)


def targets(rows: list[Row]) -> list[Row]:
    """Return the targets: top-1 apart from the first backend's."""
    return [
        target(f"{row['backend']}: points of top-1 apart", abs(row["top1"] - rows[0]["top1"]), _TOP1)
        for row in rows[1:]
    ]


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DIR", help="folder of the evaluation split: CLASS/*")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a trained model")
    parser.add_argument("--most", type=int, default=1000, metavar="N", help="images at most (default: %(default)s)")
    parser.add_argument(
        "--enlarge", type=int, metavar="SIDE", help="store the images as JPEGs of so many pixels a side first"
    )
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="default: %(default)s")


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate, write the result and print it."""
    args = arguments("backends.agreement", __doc__ or "", argv, _add_flags, {"backends": _BACKENDS})
    most = 20 if args.quick else args.most
    with chosen(args.data, most, args.enlarge) as folder:
        rows = collect(args.checkpoint, folder, args.backends, resolve_device(None), args.batch_size)
    show("agreement", rows)
    settings = {"checkpoint": Path(args.checkpoint).name, "most": most, "enlarge": args.enlarge}
    finish(args.output, "agreement", settings, rows, targets(rows))


if __name__ == "__main__":
    main()
