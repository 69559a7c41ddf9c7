import gc
import multiprocessing
import sys

import pytest
import torch
from torch._utils import ExceptionWrapper

from flashkat.errors import DivergedError, InputError, require


@pytest.fixture
def end_loaders():
    """Ends the loader processes that an error left behind; the garbage collector would wait 5 s for each."""
    yield
    for process in multiprocessing.active_children():
        process.terminate()
        process.join()
    gc.collect()


def test_message_is_kept():
    assert str(InputError("no checkpoint at last.pth")) == "no checkpoint at last.pth"


def test_the_two_errors_are_told_apart():
    assert not issubclass(DivergedError, InputError)
    assert not issubclass(InputError, DivergedError)


class BrokenData(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("cannot identify image file")
        except OSError as error:
            raise InputError("cannot decode the image a/b.png: replace or remove it") from error


def test_error_of_a_loader_process_is_the_message_alone(end_loaders):
    loader = torch.utils.data.DataLoader(BrokenData(), num_workers=1)
    with pytest.raises(InputError) as caught:
        next(iter(loader))
    assert str(caught.value) == "cannot decode the image a/b.png: replace or remove it"


def test_torchs_way_to_carry_an_error_over():
    try:
        raise InputError("one\nmessage of two lines")
    except InputError:
        wrapper = ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process 3")
    # This is what the class has to undo.
    assert "Traceback" in wrapper.exc_msg
    with pytest.raises(InputError) as caught:
        wrapper.reraise()
    assert str(caught.value) == "one\nmessage of two lines"


def test_message_that_only_resembles_a_loaders():
    message = "the word InputError: is in this"
    assert str(InputError(message)) == message


def test_require():
    require("torch", "timm", extra="training")
    with pytest.raises(InputError, match=r"^no_such_module not installed: pip install 'flashkat\[training\]'$"):
        require("torch", "no_such_module", extra="training")
    with pytest.raises(InputError, match=r"^first_missing and second_missing not installed"):
        require("first_missing", "torch", "second_missing", extra="training")


def test_require_does_not_import():
    sys.modules.pop("this", None)
    require("this", extra="training")
    assert "this" not in sys.modules
