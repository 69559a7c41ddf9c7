#!/usr/bin/env python
"""Run ``flashkat train`` from a checkout, under the name of timm's script. It works with torchrun too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

try:
    from flashkat.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error}: install what it needs, from its folder, with pip install -e '.[training]'")

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
