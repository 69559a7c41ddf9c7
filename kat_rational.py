"""Let programs in this checkout import kat_rational, KAT's package of activations: it means this package."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
sys.modules[__name__] = importlib.import_module("flashkat.compat.install").stand_in(__name__)
