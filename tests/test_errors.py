import importlib
import sys

import pytest
from torch._utils import ExceptionWrapper

from flashkat.errors import DivergedError, InputError, did_you_mean, explain, is_installed, require, start_prefix


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
    require("torch", "timm")
    with pytest.raises(InputError, match=r"^no-such-module not installed: pip install no-such-module$"):
        require("torch", "no_such_module")
    with pytest.raises(InputError, match=r"^first and second not installed: pip install first second$"):
        require("first", "torch", "second")


def test_a_package_of_another_name_than_its_module(monkeypatch):
    monkeypatch.setattr("flashkat.errors.is_installed", lambda module: False)
    with pytest.raises(InputError, match=r"pip install scikit-learn$"):
        require("sklearn")


def test_require_does_not_import():
    sys.modules.pop("this", None)
    require("this")
    assert "this" not in sys.modules


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("only_a_folder")
    monkeypatch.setitem(sys.modules, "only_a_folder", importlib.import_module("only_a_folder"))
    assert not is_installed("only_a_folder")
    assert is_installed("torch")
    assert is_installed("email")


def test_a_name_that_was_begun_goes_before_a_nearer_one():
    assert did_you_mean("ada", ["adan_of_many", "adafactor", "da"], "nothing") == "did you mean 'adafactor'?"
    assert did_you_mean("daa", ["adan_of_many", "da"], "nothing") == "did you mean 'da'?"
    assert did_you_mean("", ["da"], "nothing") == did_you_mean("zz", ["da"], "nothing") == "nothing"


def test_an_argument_that_is_not_there_is_explained_without_names_of_code():
    with pytest.raises(InputError, match=r"^cannot go: there is no argument speed\b") as caught, explain("cannot go"):
        InputError("", speed=3)
    assert "__init__" not in str(caught.value)


def test_an_error_of_the_system_is_explained_without_its_number(tmp_path):
    with pytest.raises(InputError, match=r"^cannot read it: No such file or directory$"), explain("cannot read it"):
        (tmp_path / "nothing").read_text()


@pytest.mark.parametrize(("is_kept", "prefix"), [("True", "flashkat/2"), ("False", "flashkat/0"), (None, "flashkat/0")])
def test_restarts_are_counted_where_torchrun_keeps_its_store(monkeypatch, is_kept, prefix):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    if is_kept is not None:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", is_kept)
    assert start_prefix() == prefix
