"""Check the samples of a data set once, when it is opened, not when a worker reads them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import InputError, explain

__all__ = ["check_class_map", "check_columns", "check_shards", "check_streamed_columns"]


def check_class_map(path: str) -> None:
    """Raise InputError unless a class map is a text; timm would unpickle another kind."""
    if path and not path.endswith(".txt"):
        raise InputError(f"--class-map {path} is no .txt: write the class names into one, a line each")


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
    # A target key names a field of the JSON beside the image. The reader checks one that names a file.
    if (reader.target_key or "cls") not in keys:
        _require(keys, "json" if reader.target_key or reader.split_info.alt_label else "cls", "--target-key", source)


def _require_target(columns: Collection[str], keys: str, source: str) -> None:
    for key in keys.split(","):
        # A path leads to the fields of a column.
        if key.strip() not in columns:
            _require(columns, key.strip().split("/")[0], "--target-key", source)


def _require(keys: Collection[str], key: str, flag: str, source: str) -> None:
    if key not in keys:
        raise InputError(f"the samples of {source} hold {', '.join(keys) or 'nothing'}, but no {key!r}: give {flag}")
