#!/usr/bin/env python
"""Run ``flashkat validate`` from a checkout, under the name of timm's script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

try:
    from flashkat.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"validate.py: {error}: install what it needs, from its folder, with pip install -e '.[training]'")

if __name__ == "__main__":
    run(["validate", *sys.argv[1:]])
