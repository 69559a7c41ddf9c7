#!/usr/bin/env python
"""Count operations and parameters, under the name of KAT's script: python tools/calculate_flops.py [MODEL] [FLAGS]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

try:
    from flashkat.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(
        f"calculate_flops.py: {error}: install what it needs, from the checkout, with pip install -e '.[training]'"
    )

if __name__ == "__main__":
    run(["flops", *(sys.argv[1:] or ["kat_tiny_gelu_patch16_224"])])
