"""Decode batches in threads, while the model trains on earlier ones."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .around import Around
from .encoded import EncodedBatch
from .resident import ResidentBatch

__all__ = ["Decoding"]

# Batches that are decoded at once on a GPU.
_THREADS = 2
# With those that are decoded, and wait to be used.
_AHEAD = 3


@dataclass
class _Ahead:
    """Images of a batch that a thread decodes. timm's prefetcher takes it for their tensor."""

    images: Future[Tensor]

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Wait for the images (B, 3, H, W) in uint8, for the current stream."""
        images = self.images.result()
        if images.is_cuda:
            images.record_stream(torch.cuda.current_stream(images.device))
        return images


class Decoding(Around):
    """A loader whose batches are decoded and augmented in threads, each with a stream of its own.

    Args:
        loader: gives the batches of :class:`CollateEncoded` or :class:`CollateResident`.
        decoder: makes their images: :class:`Decoder` or :class:`Store`.
        device: where they are used.
    """

    def __init__(self, loader: Any, decoder: Any, device: torch.device) -> None:
        self.loader, self.decoder, self._device = loader, decoder, device
        # Without a GPU, Triton's interpreter runs one kernel at a time.
        threads = _THREADS if device.type == "cuda" else 1
        # They live as long as the loader: the allocator keeps memory for each stream.
        self._threads = ThreadPoolExecutor(threads, "decode", self._begin)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        started: deque[Any] = deque()
        for batch, target in self.loader:
            started.append((_Ahead(self._threads.submit(self._decode, batch)), target))
            if len(started) == _AHEAD:
                yield started.popleft()
        yield from started

    def _begin(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(self._device))

    def _decode(self, batch: EncodedBatch | ResidentBatch) -> Tensor:
        images = batch.decode(self.decoder, self._device)
        if images.is_cuda:
            # The thread sleeps until then. To poll would take a core from the loader's workers.
            done = torch.cuda.Event(blocking=True)
            done.record()
            done.synchronize()
        return images
