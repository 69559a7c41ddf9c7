"""Commands read their flags before they import PyTorch, and the names of the package are there anyway."""

import argparse
import subprocess
import sys
from dataclasses import fields

import pytest

import flashkat
from flashkat import evaluation, training
from flashkat.cli.parser import Parser
from flashkat.cli.train_flags import add_training_arguments
from flashkat.cli.validate_flags import add_validation_arguments
from flashkat.defaults import CHOICES, LENGTHS, RANGES

HEAVY = ("torch", "timm", "numpy", "PIL", "yaml")


def imports(*words):
    """The exit status of a command, and the heavy modules among those that it imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", *words], capture_output=True, text=True)
    found = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "flashkat.cli.parser" in found
    return done.returncode, sorted(found.intersection(HEAVY))


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["flashkat", "--help"], 0),
        (["flashkat", "--version"], 0),
        (["flashkat", "train", "--help"], 0),
        (["flashkat", "validate", "--help"], 0),
        (["flashkat", "trian"], 2),
        (["flashkat", "train", "data", "--epohcs", "3"], 2),
        (["flashkat", "plot"], 2),
        (["flashkat", "fit", "--help"], 0),
        (["flashkat.cli.launch", "2", "data", "--epohcs", "3"], 2),
    ],
    ids=str,
)
def test_flags_are_read_without_pytorch(words, status):
    assert imports(*words) == (status, [])


def test_a_command_imports_what_it_needs():
    assert imports("flashkat", "flops", "kat_none") == (2, ["PIL", "numpy", "timm", "torch", "yaml"])


def test_names_of_the_package_are_imported_at_their_first_use_in_a_command():
    code = (
        "import sys; sys.argv[0] = 'flashkat'; sys.orig_argv = ['python', 'flashkat']; import flashkat; "
        "assert 'torch' not in sys.modules; print(*[getattr(flashkat, name).__name__ for name in flashkat.__all__]); "
        "flashkat.none"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert [name.rpartition(".")[2] for name in done.stdout.split()] == flashkat.__all__, done.stderr
    assert "AttributeError: module 'flashkat' has no attribute 'none'" in done.stderr


def test_settings_may_have_the_values_of_their_flags():
    ranges, choices, lengths = {}, {}, {}
    for add, config in ((add_training_arguments, training.Config()), (add_validation_arguments, evaluation.Config())):
        sections = [section for section in vars(config).values() if not isinstance(section, dict)]
        names = {each.name for section in sections for each in fields(section)}
        parser = Parser()
        add(parser)
        for action in parser._actions:
            if action.dest in names and hasattr(action.type, "range"):
                ranges[action.dest] = action.type.range
                if action.nargs not in (None, argparse.OPTIONAL):
                    lengths[action.dest] = action.nargs if isinstance(action.nargs, int) else 0
            if action.dest in names and action.choices:
                choices[action.dest] = tuple(action.choices)
    assert ranges == RANGES
    assert choices == CHOICES
    assert lengths == LENGTHS
