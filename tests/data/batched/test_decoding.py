"""Batches that threads decode: in order, ahead of their use, and with their errors."""

import threading

import numpy as np
import pytest
import torch

from flashkat.data.batched.decoding import Decoding
from flashkat.data.batched.encoded import CollateEncoded, Cut, Jpeg
from flashkat.errors import InputError

CUT = Cut((0, 0, 4, 4), (8, 8))


def batches(number):
    """Batches of one image, whose only value is the batch's number."""
    jpegs = [Jpeg(np.full(3, index, dtype=np.uint8), "x.jpg", (4, 4)) for index in range(number)]
    return [CollateEncoded((8, 8))([(((jpeg, CUT), []), index)]) for index, jpeg in enumerate(jpegs)]


def number_of(images):
    return int(images.to(torch.device("cpu"))[0, 0, 0, 0])


class Decoder:
    """Give what the file holds. A batch of ``after`` waits until that of its value is decoded."""

    def __init__(self, device, after=()):
        self.device, self.after = device, dict(after)
        self.done = [threading.Event() for _ in range(8)]

    def decode(self, jpegs, cuts):
        number = int(jpegs[0].data[0])
        if number in self.after:
            assert self.done[self.after[number]].wait(20)
        self.done[number].set()
        if number == 6:
            raise InputError("cannot decode the image x.jpg")
        return torch.full((len(jpegs), 8, 8, 3), number, dtype=torch.uint8, device=self.device)


@pytest.fixture
def decoding(device):
    pytest.importorskip("triton")
    return lambda number, after=(): Decoding(batches(number), Decoder(device, after), device)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6])
def test_batches_come_in_order_with_their_targets(decoding, number):
    for _ in range(2):  # epochs
        found = [(number_of(images), target.item()) for images, target in decoding(number)]
        assert found == [(index, index) for index in range(number)]


def test_a_batch_is_decoded_while_the_one_before_is_used(decoding):
    loader = decoding(4)
    loaded = iter(loader)
    assert number_of(next(loaded)[0]) == 0
    assert loader.decoder.done[2].wait(20)
    assert not loader.decoder.done[3].is_set()


@pytest.mark.gpu
def test_two_batches_are_decoded_at_once(decoding):
    """The first ends after the second."""
    assert [number_of(images) for images, _ in decoding(4, {0: 1})] == [0, 1, 2, 3]


def test_an_error_comes_with_its_batch(decoding):
    loaded = iter(decoding(8))
    assert [number_of(next(loaded)[0]) for _ in range(6)] == list(range(6))
    with pytest.raises(InputError, match="cannot decode"):
        number_of(next(loaded)[0])
    assert number_of(next(loaded)[0]) == 7
