"""Classify images: ``flashkat predict``."""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ...data.images import read_image
from ...errors import is_installed
from ...evaluation import Config
from ...system.files import placeholder
from ...system.terminal import printable_name
from .classifier import Classifier, open_classifier
from .found_images import find_images

__all__ = ["FORMS", "Prediction", "heading", "line_of", "predict"]

FORMS = ("text", "json", "csv")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image.

    Attributes:
        image: the file's name as given.
        classes: (index, name, probability) of each, the most probable first.
    """

    image: str
    classes: tuple[tuple[int, str, float], ...]


def predict(
    config: Config,
    names: Sequence[str],
    lines: Iterable[str],
    *,
    top: int = 5,
    trust: bool = False,
    terminal: TextIO | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Prediction | None]:
    """Classify images, and yield a prediction for each.

    An image that cannot be read is named, and None takes the place of its prediction.

    Args:
        config: ``trained`` names the model, see :func:`open_classifier`; ``data.batch_size`` images run together.
        names: files, folders and patterns, see :func:`find_images`.
        lines: names for ``-``.
        top: number of classes of each image.
        trust: load a ``.pt2``, which may run code of its author.
        terminal: where to draw a progress bar; None draws none.
        say: called with each line for the user.

    Raises:
        InputError: the model cannot be opened, or no images are named.
    """
    paths = find_images(names, lines)
    classifier = open_classifier(config, trust, say)
    transform, mode = classifier.description.transform(), classifier.description.image_mode
    with _progress(len(paths), terminal) as advance:
        waiting = iter(paths)
        while batch := list(islice(waiting, config.data.batch_size)):
            images: list[Tensor | None] = []
            for path in batch:
                try:
                    images.append(_read(path, mode, transform))
                except Exception as error:  # damaged files make Pillow raise almost anything
                    say(f"cannot read {printable_name(str(path))}, skipped: {_reason(path, error)}")
                    images.append(None)
                advance()
            yield from _classified(classifier, batch, images, top)


def _read(path: Path, mode: str, transform: Callable[[Any], Any]) -> Tensor:
    if path.exists() and not path.is_file():
        raise OSError("it is no file")  # to read a pipe may take for ever
    with path.open("rb") as file:
        image: Tensor = transform(read_image(file, mode))
    return image


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.is_file():
        with contextlib.suppress(OSError), path.open("rb") as file:
            if other := placeholder(file.read(64)):
                return f"it {other}"
    return "it is no image" if type(error).__name__ == "UnidentifiedImageError" else f"{error!s:.200}"


def _classified(
    classifier: Classifier, paths: Sequence[Path], images: Sequence[Tensor | None], top: int
) -> Iterator[Prediction | None]:
    read = [image for image in images if image is not None]
    if not read:
        yield from (None for _ in images)
        return
    probabilities = classifier.probabilities(torch.stack(read))
    values, indices = (each.tolist() for each in probabilities.topk(min(top, probabilities.shape[1]), dim=1))
    rows = iter(zip(values, indices, strict=True))
    for path, image in zip(paths, images, strict=True):
        if image is None:
            yield None
            continue
        best = zip(*next(rows), strict=True)
        yield Prediction(str(path), tuple((index, classifier.description.name(index), value) for value, index in best))


@contextlib.contextmanager
def _progress(total: int, terminal: TextIO | None) -> Iterator[Callable[[], None]]:
    """Draw a bar on a terminal while images are read, and yield what moves it on."""
    if terminal is None or not is_installed("rich"):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    # Results that are printed meanwhile appear above the bar, if they go to the terminal too.
    with Progress(*columns, console=Console(file=terminal), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("Images", total=total)
        yield lambda: bar.advance(task)


def heading(form: str) -> str:
    """Return the first line of a form of output; none is empty."""
    return "image,rank,index,class,probability" if form == "csv" else ""


def line_of(prediction: Prediction, form: str) -> str:
    """Return a prediction as text for people, a line of JSON, or lines of CSV.

    Names come from files, and the text for people escapes what could move a terminal's cursor.
    """
    if form == "json":
        classes = [{"index": index, "class": name, "probability": value} for index, name, value in prediction.classes]
        return json.dumps({"image": prediction.image, "predictions": classes})
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for rank, (index, name, value) in enumerate(prediction.classes, 1):
            writer.writerow([prediction.image, rank, index, name, f"{value:.6g}"])
        return text.getvalue().rstrip("\n")
    rows = [f"  {value:6.1%}  {printable_name(name)}" for _, name, value in prediction.classes]
    return "\n".join([printable_name(prediction.image), *rows])
