import pytest
import tiny

from flashkat.cli.main import main


@pytest.fixture(autouse=True)
def without_curves(no_curves):
    """But where a test asks for them."""


@pytest.fixture
def refused(images, tmp_path, capsys):
    """The one line that ``flashkat train`` refuses flags with, before it has made a folder."""

    def run(*flags, at_once=True):
        argv = ["train", str(images), *tiny.FLAGS, "-j", "0", "-b", "4", "--output", str(tmp_path / "output"), *flags]
        assert main(argv) == 2
        assert not (tmp_path / "output").exists()
        out, err = capsys.readouterr()
        assert not at_once or out == ""
        assert err.count("\n") == 1
        return err

    return run
