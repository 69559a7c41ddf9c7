import sys

import pytest
from torch._utils import ExceptionWrapper

from flashkat.errors import DivergedError, InputError, require


def test_message_is_kept():
    assert str(InputError("no checkpoint at last.pth")) == "no checkpoint at last.pth"


def test_the_two_errors_are_told_apart():
    assert not issubclass(DivergedError, InputError)
    assert not issubclass(InputError, DivergedError)


def test_error_of_a_loader_process_is_the_message_alone():
    # As a loader process does it, where the message has a cause that the traceback shows first.
    try:
        try:
            raise OSError("InputError: cannot identify image file")
        except OSError as error:
            raise InputError("one\nmessage of two lines") from error
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
