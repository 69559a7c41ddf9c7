"""Check the samples of a data set once, when it is opened, not when a worker reads them."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import InputError, explain
from .scan import numbered

__all__ = ["NO_IMAGES", "check_columns", "check_shards", "check_streamed_columns", "name_classes"]

NO_IMAGES = "a whole pass over the data gave no images: check its files, --input-key and --target-key"


def check_columns(reader: Any, source: str) -> None:
    """Raise InputError unless a Hugging Face data set has the columns of images and classes.

    Args:
        reader: timm's reader of ``hfds/``.
        source: the data set's name, for errors.
    """
    table, image = reader.dataset, reader.image_key
    # timm's cast to images creates a missing column, without values.
    is_made = table.data.column(image).null_count == len(table)
    columns = [name for name in table.column_names if name != image or not is_made]
    _require(columns, image, "--input-key", source)
    _require_target(columns, reader.label_key, source)


def name_classes(reader: Any, source: str) -> None:
    """Let the texts in a Hugging Face data set's label column be its classes, in the order of their names.

    A class map, if given, numbers them instead. It also numbers a column of numbers by their names.

    Args:
        reader: timm's reader of ``hfds/``, which is changed.
        source: the data set's name, for errors.

    Raises:
        InputError: a sample has no class, or one that the class map lacks. Or the class map is for numbers without
            names.
    """
    key, table = reader.label_key, reader.dataset
    column = table.features.get(key)
    _check_map(reader, column, key, source)
    if not _is_text(column) and not (_is_number(column) and reader.remap_class):
        return
    texts = table.unique(key)
    if not _is_text(column):
        known = dict(enumerate(column.names))
        texts = [known.get(number) for number in texts]
    if not reader.class_to_idx:
        reader.class_to_idx, reader.remap_class = numbered(text for text in texts if text is not None), True
    unknown = [text for text in texts if text not in reader.class_to_idx]
    if unknown:
        lacking = f"the class {unknown[0]!r:.40}, not in the class map"
        what = "samples without a class" if unknown[0] is None else lacking
        raise InputError(f"column {key!r} of {source} has {what}: leave these samples out of the data set")


def check_streamed_columns(reader: Any, source: str) -> None:
    """Check as :func:`check_columns` for ``hfids/``, whose image column must have the type of an image."""
    columns = reader.builder.info.features
    if not columns:  # unknown before a sample has been read
        with explain(f"cannot read {source}"):
            columns = next(iter(reader.builder.as_streaming_dataset(split=reader.split)), {})
    image = reader.input_key
    _require(columns, image, "--input-key", source)
    _require_target(columns, reader.target_key, source)
    if isinstance(columns[image], dict) or not getattr(columns[image], "decode", True):
        raise InputError(f"column {image!r} of {source} holds no images but bytes: --dataset hfds/ reads these")
    _check_map(reader, columns.get(reader.target_key), reader.target_key, source)
    if not reader.class_to_idx and _is_text(columns.get(reader.target_key)):
        raise InputError(
            f"column {reader.target_key!r} of {source} holds texts, and a stream does not list them all: give "
            "--class-map, or take --dataset hfds/"
        )


def check_shards(reader: Any, source: str, readers: int) -> None:
    """Raise InputError unless the shards of a WebDataset are there, and the first sample holds an image and a class.

    timm's reader itself only warns of samples that it cannot read, and leaves them out, even if none is left.

    Args:
        reader: timm's reader of ``wds/``. Shards elsewhere (https:, pipe:) are not checked.
        source: the data set's name, for errors.
        readers: workers of all processes. Each needs a shard, or it would have fewer batches than the others.
    """
    names = reader.split_info.filenames
    paths = [Path(reader.root, name) for name in names if ":" not in name]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"no shard at {missing[0]}: {len(missing)} of the {len(names)} of {source} are missing")
    if len(names) < readers:
        raise InputError(
            f"{source} has {len(names)} shards, fewer than the {readers} workers of all processes: give fewer --workers"
        )
    if not paths:
        return
    import webdataset

    with explain(f"cannot read {paths[0]}"):
        shards = webdataset.SimpleShardList([str(paths[0])])
        sample: dict[str, Any] = next(iter(webdataset.DataPipeline(shards, webdataset.tarfile_to_samples())), {})
    keys = [key for key in sample if not key.startswith("__")]
    # Any of several names will do.
    if not set(reader.input_key.split(";")) & set(keys):
        _require(keys, reader.input_key, "--input-key", source)
    # A target key names a field of the JSON beside the image. By default timm 1.0.29 has "cls", and newer ones none.
    is_default = reader.target_key == "cls" and not hasattr(reader, "target_keys")
    field = (None if is_default else reader.target_key) or reader.split_info.alt_label
    _require(keys, "json" if field else "cls", "--target-key", source)
    if not field:
        _check_number(sample["cls"].decode(errors="replace"), source)
    elif "," not in field:
        with explain(f"cannot read the first .json of {source}"):
            value = json.loads(sample["json"]).get(field)
        if value is not None:  # a path to a field of fields, for one
            _check_number(value, source)


def _check_number(label: Any, source: str) -> None:
    """Raise InputError for the class of a WebDataset's sample that is no number. timm's reader leaves it out."""
    try:
        int(label)
    except ValueError as error:
        raise InputError(
            f"the first sample of {source} has the class {label!r:.40}, where shards hold its number: write numbers"
        ) from error
    except TypeError:  # a list of classes
        return


def _is_text(column: Any) -> bool:
    """Return whether a column, or the first value in it, is of text."""
    return isinstance(column, str) or getattr(column, "dtype", None) in ("string", "large_string")


def _is_number(column: Any) -> bool:
    """Return whether a column, or the first value in it, is of whole numbers."""
    return type(column) is int or str(getattr(column, "dtype", "")).startswith(("int", "uint"))


def _check_map(reader: Any, column: Any, key: str, source: str) -> None:
    """Raise InputError if there is a class map for a column of numbers whose names timm does not look up."""
    # timm looks them up from 1.0.31 on.
    has_names = bool(getattr(column, "names", None)) and hasattr(reader, "_source_names")
    if reader.remap_class and _is_number(column) and not has_names:
        raise InputError(f"column {key!r} of {source} holds numbers, not names of the class map: leave out --class-map")


def _require_target(columns: Collection[str], keys: str, source: str) -> None:
    for key in keys.split(","):
        # A path leads to the fields of a column.
        if key.strip() not in columns:
            _require(columns, key.strip().split("/")[0], "--target-key", source)


def _require(keys: Collection[str], key: str, flag: str, source: str) -> None:
    if key not in keys:
        raise InputError(f"the samples of {source} hold {', '.join(keys) or 'nothing'}, but no {key!r}: give {flag}")
