"""Divide a data set without splits into links to training and evaluation images: ``flashkat data split``."""

import os
from collections.abc import Callable
from pathlib import Path

from ...data.folders import has_evaluation_split, is_archive, open_split
from ...errors import InputError, explain
from ...system.files import new_folder
from ...system.terminal import printable_name

__all__ = ["split_data"]

# Classes that an error names.
_NAMED = 5


def split_data(
    folder: str, output: str, val_fraction: float, say: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Make ``output/{train,val}/CLASS/*`` of links to the images of a folder, which stay where they are.

    The split is fixed and stratified. ``flashkat train --val-fraction`` holds out the same images.

    Args:
        folder: the class folders, or ``train`` with these and nothing to evaluate.
        output: a new or empty folder.
        val_fraction: share of each class to hold out.
        say: called with each line for the user.

    Returns:
        The number of images in each split.

    Raises:
        InputError: there are no such images, they are divided already, the links would lie among them, or cannot be
            made. Or a class has one image, as training wants every class in both splits.
    """
    if is_archive(Path(folder)):
        raise InputError(f"{folder} is an archive, which links cannot divide: train on it with --val-fraction")
    if has_evaluation_split(Path(folder)):
        raise InputError(f"{folder} is divided already: name the folder of its training images to divide these")
    # Links to images of the resolved folder need not go back through a link.
    target, source = Path(output).resolve(), Path(folder).resolve()
    if target.is_relative_to(source):
        raise InputError(f"{output} lies in {folder}, whose images it would add to: choose a folder beside it")
    splits = {
        split: open_split(str(source), split, val_fraction=val_fraction, is_training=split == "train")
        for split in ("train", "val")
    }
    # A class of several images holds out at least one.
    held_out = set(splits["val"].reader.targets)
    single = [
        printable_name(name) for name, index in splits["val"].reader.class_to_idx.items() if index not in held_out
    ]
    if single:
        more = f" and {len(single) - _NAMED} more" if len(single) > _NAMED else ""
        raise InputError(
            f"{folder} has one image of {', '.join(single[:_NAMED])}{more}, which cannot be in both splits: "
            "add images, or train on it with --val-fraction"
        )
    with new_folder(target) as staging, explain(f"cannot make links in {target}"):
        for split, images in splits.items():
            for name in images.filenames(absolute=True):
                inside = Path(split) / Path(name).relative_to(images.reader.root)
                (staging / inside).parent.mkdir(parents=True, exist_ok=True)
                aim = os.path.relpath(Path(name).absolute(), (target / inside).parent)
                (staging / inside).symlink_to(aim)
    for note in splits["train"].notes:
        say(note)
    return {split: len(images) for split, images in splits.items()}
