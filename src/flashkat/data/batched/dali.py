"""NVIDIA DALI's decoder: JPEG files to the parts of them that are cut out, on a GPU or a CPU."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from .encoded import Cut, Jpeg, decode_by_pillow

__all__ = ["Decoder"]


class Decoder:
    """Decode batches of JPEG files, resize a part of each, and cut the result.

    Images are not turned by their EXIF orientation. Pixels differ from Pillow's by a few grey levels: both decoder and
    resizing round otherwise.

    Args:
        batch_size: the most images of a batch.
        size: height and width of the results.
        device: where the results are.
        threads: processor threads of the decoder.
        has_windows: whether parts are resized to more than ``size``, and cut to it.
        is_on_cpu: decode on the CPU, and only resize on the GPU. That is for GPUs without a decoder.
    """

    def __init__(
        self,
        batch_size: int,
        size: tuple[int, int],
        device: torch.device,
        threads: int,
        *,
        has_windows: bool = True,
        is_on_cpu: bool = False,
    ) -> None:
        self._batch_size, self._size, self._device, self._threads = batch_size, size, device, threads
        self._has_windows, self._is_on_cpu = has_windows, is_on_cpu
        self._idle: list[Any] = []  # a pipeline decodes one batch at a time

    def start(self, jpegs: Sequence[Jpeg], cuts: np.ndarray) -> Callable[[], Tensor]:
        """Start to decode a batch, beside those started before, and return what waits for the result.

        Args:
            jpegs: the images.
            cuts: what to cut out of each, see :meth:`Cut.numbers`.

        Returns:
            a function that returns the images (N, H, W, 3) in uint8, on the current stream. It raises InputError where
            an image cannot be decoded.
        """
        pipeline = self._idle.pop() if self._idle else self._build()
        # The pipeline reads the bytes where they are, so they must stay until its end.
        pipeline.kept = jpegs
        pipeline.feed_input("jpegs", [jpeg.data for jpeg in jpegs])
        pipeline.feed_input("cuts", _table(cuts))
        pipeline.schedule_run()
        result = partial(self._result, pipeline, jpegs, cuts)
        # A pipeline that is freed while it runs still writes to its memory, which others have by then.
        weakref.finalize(result, self._abandon, pipeline, jpegs).atexit = False
        return result

    def _result(self, pipeline: Any, jpegs: Sequence[Jpeg], cuts: np.ndarray) -> Tensor:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            (found,) = pipeline.outputs(cuda_stream=stream)
        except RuntimeError as error:
            pipeline.kept = None
            # After an error a pipeline cannot go on. Pillow finds the image, or decodes what DALI does not.
            images = decode_by_pillow(jpegs, map(Cut.of_numbers, cuts.tolist()), self._size)
            _explain(error)
            return images.to(self._device)
        pipeline.kept = None
        self._idle.append(pipeline)
        images = torch.empty(len(jpegs), *self._size, 3, dtype=torch.uint8, device=self._device)
        feed_ndarray(found.as_tensor(), images, cuda_stream=stream)
        return images

    def _abandon(self, pipeline: Any, jpegs: Sequence[Jpeg]) -> None:
        """Wait for the end of a batch whose result was given up, so that its pipeline can be used again."""
        if pipeline.kept is not jpegs:  # the result was taken, and the pipeline may decode another batch
            return
        with contextlib.suppress(RuntimeError):  # an image cannot be decoded, but no one needs it
            pipeline.outputs()
            pipeline.kept = None
            self._idle.append(pipeline)

    def _build(self) -> Any:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self._device.type == "cuda"
        pipeline = Pipeline(
            self._batch_size,
            self._threads,
            self._device.index or 0 if on_gpu else None,
            prefetch_queue_depth=1,
        )
        with pipeline:
            cuts = fn.external_source(name="cuts")
            floats = fn.cast(cuts[:6], dtype=types.FLOAT)
            images = fn.decoders.image(
                fn.external_source(name="jpegs", no_copy=True),
                device="mixed" if on_gpu and not self._is_on_cpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                # As Pillow's library does it.
                jpeg_fancy_upsampling=True,
                # DALI's default of 0.65 decodes the others on the processor, which the loader's workers need.
                hw_decoder_load=1.0,
            )
            resized = fn.resize(
                images.gpu() if on_gpu else images,
                roi_start=floats[:2],
                roi_end=floats[2:4],
                size=floats[4:],
                interp_type=fn.cast(cuts[8], dtype=types.INTERP_TYPE),
                antialias=True,
            )
            if self._has_windows:
                resized = fn.slice(resized, start=cuts[6:8], shape=self._size, axes=(0, 1))
            pipeline.set_outputs(resized)
        pipeline.build()
        return pipeline


def _explain(error: RuntimeError) -> None:
    """Warn of a batch that DALI did not decode and Pillow did, which takes much longer.

    Raises:
        InputError: DALI has no memory left, so it would fail again.
    """
    lines = str(error).splitlines()
    reason = next((line.strip() for line in lines if "rror" in line), "no reason given")
    if any(sign in str(error).lower() for sign in ("alloc", "out of memory")):
        raise InputError(
            f"NVIDIA DALI has no memory left to decode images ({reason:.200}): "
            "give a smaller --batch-size, or --data-backend timm"
        ) from error
    warnings.warn(f"NVIDIA DALI cannot decode a batch, so Pillow does, slowly: {reason:.200}", stacklevel=2)


def _table(cuts: np.ndarray) -> np.ndarray:
    """Return what the pipeline reads of each cut: first corner, last corner, size, window, and interpolation."""
    from nvidia.dali import types

    box, is_bicubic, flips, size, window = np.split(cuts, (4, 5, 7, 9), axis=1)
    low, high = box[:, :2], box[:, :2] + box[:, 2:]
    # Exchanged coordinates flip the image.
    is_flipped = flips[:, ::-1] > 0
    way = np.where(is_bicubic > 0, int(types.INTERP_CUBIC), int(types.INTERP_LINEAR))
    columns = np.where(is_flipped, high, low), np.where(is_flipped, low, high), size, window, way
    return np.concatenate(columns, axis=1).astype(np.int32)
