"""Run timm's own tests of models on KATs: python dev/timm_tests.py [ARGUMENT OF PYTEST ...].

timm's wheel holds no tests, so those of the installed version come from its source distribution, once. Our names join
timm's filters beside its ViTs'. Tests that download weights are left out, and so is TorchScript, which PyTorch has
deprecated.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build/timm-tests"
NAMES = ["kat_*", "flash_kat_*"]
# What each list of timm's file takes in.
FILTERS = {"FEAT_INTER_FILTERS": ["kat"], "NON_STD_FILTERS": NAMES, "EXCLUDE_JIT_FILTERS": NAMES}
# Each size once: other names are aliases, or start from another function.
MODELS = "kat_tiny_patch16_224 or kat_small_patch16_224 or kat_base_patch16_224"
CHOICE = f"({MODELS}) and not flash_kat and not pretrained"
MARKERS = "base forward backward cfg cfg_nonstd torchscript features fxforward fxbackward"


def with_our_models(text: str) -> str:
    """Return timm's file of tests with our models in it."""
    changes = {"import timm": "import flashkat\nimport timm"}
    changes |= {f"{name} = [": f"{name} = [*{names}, " for name, names in FILTERS.items()}
    for old, new in changes.items():
        before, found, after = text.partition(f"\n{old}")
        if not found:
            raise SystemExit(f"timm's tests have no {old!r} any more: look at them, and change dev/timm_tests.py")
        text = f"{before}\n{new}{after}"
    return text


def fetch(release: str) -> Path:
    """Return the source distribution of a release of timm, downloaded where it is not there."""
    archive = FOLDER / f"timm-{release}.tar.gz"
    if not archive.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm"]
        subprocess.run([*command, "--dest", str(FOLDER), f"timm=={release}"], check=True)
    return archive


def main() -> int:
    """Fetch, change and run the tests, and return the exit status of pytest."""
    release = version("timm")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fetch(release)) as archive:
        file = archive.extractfile(f"timm-{release}/tests/test_models.py")
        assert file is not None
        (FOLDER / "test_models.py").write_text(with_our_models(file.read().decode()))
    markers = "".join(f"    {name}\n" for name in MARKERS.split())
    (FOLDER / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{markers}")
    command = [sys.executable, "-m", "pytest", "-W", "ignore::FutureWarning", "-k", CHOICE, *sys.argv[1:]]
    return subprocess.run([*command, "test_models.py"], cwd=FOLDER, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
