"""NVIDIA DALI's decoder: JPEG files to the parts of them that are cut out, on a GPU or a CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
    """

    def __init__(self, batch_size: int, size: tuple[int, int], device: torch.device, threads: int) -> None:
        self._batch_size, self._size, self._device, self._threads = batch_size, size, device, threads
        self._idle: list[Any] = []  # a pipeline decodes one batch at a time

    def start(self, jpegs: Sequence[tuple[Jpeg, Cut]]) -> Callable[[], Tensor]:
        """Start to decode a batch, beside those started before, and return what waits for the result.

        This returns the images (N, H, W, 3) in uint8, on the current stream. It raises InputError where an image cannot
        be decoded.
        """
        pipeline = self._idle.pop() if self._idle else self._build()
        cuts = [cut for _, cut in jpegs]
        pipeline.feed_input("jpegs", [jpeg.data for jpeg, _ in jpegs])
        starts, ends = zip(*map(_corners, cuts), strict=True)
        pipeline.feed_input("starts", np.array(starts, dtype=np.float32))
        pipeline.feed_input("ends", np.array(ends, dtype=np.float32))
        pipeline.feed_input("sizes", np.array([cut.size for cut in cuts], dtype=np.float32))
        pipeline.feed_input("windows", np.array([cut.window for cut in cuts], dtype=np.int32))
        pipeline.feed_input("ways", np.array([_way(cut.resampling) for cut in cuts], dtype=np.int32))
        pipeline.schedule_run()
        return partial(self._result, pipeline, jpegs)

    def _result(self, pipeline: Any, jpegs: Sequence[tuple[Jpeg, Cut]]) -> Tensor:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            (found,) = pipeline.outputs(cuda_stream=stream)
        except RuntimeError:
            # After an error a pipeline cannot go on. Pillow finds the image, or decodes what DALI does not.
            return decode_by_pillow(jpegs, self._size).to(self._device)
        self._idle.append(pipeline)
        images = torch.empty(len(jpegs), *self._size, 3, dtype=torch.uint8, device=self._device)
        feed_ndarray(found.as_tensor(), images, cuda_stream=stream)
        return images

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
            images = fn.decoders.image(
                fn.external_source(name="jpegs"),
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                # As Pillow's library does it.
                jpeg_fancy_upsampling=True,
                # More than DALI's default of 0.65 leaves the processor to the loader's workers.
                hw_decoder_load=0.9,
            )
            resized = fn.resize(
                images,
                size=fn.external_source(name="sizes"),
                roi_start=fn.external_source(name="starts"),
                roi_end=fn.external_source(name="ends"),
                interp_type=fn.cast(fn.external_source(name="ways"), dtype=types.INTERP_TYPE),
                antialias=True,
            )
            window = fn.external_source(name="windows")
            pipeline.set_outputs(fn.slice(resized, start=window, shape=self._size, axes=(0, 1)))
        pipeline.build()
        return pipeline


def _corners(cut: Cut) -> tuple[list[int], list[int]]:
    """Return the first and the last corner of a cut's box. Exchanged coordinates flip the image."""
    top, left, height, width = cut.box
    rows, columns = (top, top + height), (left, left + width)
    first, last = ([rows[end != cut.flip_y], columns[end != cut.flip_x]] for end in (False, True))
    return first, last


def _way(resampling: Image.Resampling) -> int:
    from nvidia.dali import types

    ways = {Image.Resampling.BILINEAR: types.INTERP_LINEAR, Image.Resampling.BICUBIC: types.INTERP_CUBIC}
    return int(ways[resampling])
