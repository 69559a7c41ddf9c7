"""Build the compiled CPU path, ``src/flashkat/ops/cpu/native.c``: one library for every version of Python.

All else about the package is in pyproject.toml. Where there is no C compiler the package is built without it.
"""

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]
# By the names that torch.backends.cpu.get_cpu_capability() gives them; a processor picks when the library is loaded.
VARIANTS = {"default": []}
if platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux":
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]


class BuildLibrary(build_ext):
    """Name the library without the version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


class PlatformWheel(bdist_wheel):
    """Tag the wheel with the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


extensions = [
    Extension(
        f"flashkat.ops.cpu._native_{name}",
        ["src/flashkat/ops/cpu/native.c"],
        depends=["src/flashkat/ops/cpu/native_real.h"],
        extra_compile_args=[*FLAGS, *flags],
        optional=True,
    )
    for name, flags in VARIANTS.items()
]

setup(
    ext_modules=extensions if sys.platform != "win32" else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
