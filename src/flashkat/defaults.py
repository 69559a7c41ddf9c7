"""The constants that flags need too. This module imports nothing, so that ``--help`` waits for no PyTorch."""

__all__ = [
    "AVERAGES",
    "CROP_MODES",
    "DEFAULT_MODEL",
    "DEFAULT_OUTPUT",
    "EVALUATION_BATCH_SIZE",
    "FIT_METHODS",
    "FORMATS",
    "INTERPOLATIONS",
    "MOST_VIEWS",
    "PROGRAMS",
    "RESULT_FORMATS",
    "SOURCES",
    "WEIGHTS",
]

AVERAGES = ("micro", "macro", "weighted")
"""scikit-learn's averages of precision, recall and F1."""

CROP_MODES = ("center", "squash", "border")
"""timm's ways to crop for evaluation."""

DEFAULT_MODEL = "kat_tiny_patch16_224"

DEFAULT_OUTPUT = "output/train"

EVALUATION_BATCH_SIZE = 256

FIT_METHODS = ("least-squares", "minimax")

FORMATS: dict[str, tuple[str, str]] = {
    "timm": ("numerator", "denominator"),
    "kat": ("weight_numerator", "weight_denominator"),
    "flashkat": ("numerator_v", "denominator_v"),
}
"""The names of a rational's numerator and denominator in each format of weights."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")
"""timm's names of how images are resized."""

MOST_VIEWS = 10
"""The views of an image in evaluation."""

RESULT_FORMATS = ("csv", "json")
"""The formats of an evaluation's results."""

SOURCES = ("hf_hub:", "hf-hub:", "local-dir:")
"""timm's prefixes of a repository on the Hugging Face Hub, or of a folder."""

PROGRAMS = (".onnx", ".pt2")
"""The endings of exported programs."""

WEIGHTS = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors")
"""The endings of files that weights are written to."""
