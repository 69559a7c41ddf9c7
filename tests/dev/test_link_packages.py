"""Linking installed packages into another environment."""

import subprocess
import venv
from importlib.metadata import PackageNotFoundError

import pytest

from dev.link_packages import main, required


def names(*packages):
    return {package.metadata["Name"] for package in required(packages)}


def test_what_packages_require_is_found():
    found = names("flashkat")
    assert {"flashkat", "torch", "timm", "scipy", "numpy"} <= found
    assert not {"matplotlib", "pytest", "hypothesis"} & found
    assert {"matplotlib", "torch"} <= names("flashkat[training]")


def test_a_package_that_is_not_installed():
    with pytest.raises(PackageNotFoundError):
        required(["no-such-package"])


def test_another_environment_has_these_packages_alone(tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    main([str(tmp_path / "env"), "flashkat", "pytest"])
    lines = ["import numpy, torch, pytest", "try:", " import flashkat, matplotlib", "except ImportError: print('none')"]
    python = tmp_path / "env/bin/python"
    done = subprocess.run([python, "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "none\n"
    assert not list(tmp_path.glob("env/lib/*/site-packages/*flashkat*"))
