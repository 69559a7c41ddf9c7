"""Other people's imports mean this package, in the installed package when asked and in a checkout."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CODE = """
import katransformer
import timm, torch
from kat_rational import KAT_Group, KAT_Group_Torch, RationalTriton1DGroup
from rational_kat import FlashKAT_Group, KAT_Group as Other
assert KAT_Group is Other
assert KAT_Group.__module__ == FlashKAT_Group.__module__ == "flashkat.compat.activations"
x = torch.randn(2, 3, 16)
module = KAT_Group(num_groups=4, mode="swish", device="cpu")
numerator = module.weight_numerator.repeat(4, 1)
assert torch.equal(module(x), RationalTriton1DGroup.apply(x, numerator, module.weight_denominator, 4))
assert katransformer.KAN(16)(x).shape == x.shape
assert timm.is_model("kat_tiny_patch16_224")
"""


def run(code, folder, *paths):
    path = os.pathsep.join(str(each) for each in (*paths, ROOT / "src"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_registered_until_asked(tmp_path):
    code = (
        "import flashkat, importlib.util as u; print([u.find_spec(name) for name in ('katransformer', 'kat_rational')])"
    )
    assert run(code, tmp_path) == "[None, None]\n"


def test_install(tmp_path):
    code = f"import flashkat.compat; print(flashkat.compat.install(), flashkat.compat.install())\n{CODE}"
    assert run(code, tmp_path) == "['katransformer', 'kat_rational', 'rational_kat'] []\n"


def test_an_original_stays(tmp_path):
    (tmp_path / "kat_rational.py").write_text("KAT_Group = 'theirs'\n")
    code = (
        "import flashkat.compat; print(flashkat.compat.install()); import kat_rational; print(kat_rational.KAT_Group)"
    )
    assert run(code, tmp_path) == "['katransformer', 'rational_kat']\ntheirs\n"


def test_a_checkout_has_the_names(tmp_path):
    run(CODE, ROOT)
    assert "KAT_Group_Torch" in run("import kat_rational; print(*dir(kat_rational))", ROOT)
