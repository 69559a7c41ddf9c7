"""The constants that flags need too, and the values that settings may have. It imports no PyTorch, for ``--help``."""

import math

__all__ = [
    "AMOUNT",
    "BELOW_ONE",
    "CHOICES",
    "COUNT",
    "DEFAULT_MODEL",
    "DEFAULT_OUTPUT",
    "EVALUATION_BATCH_SIZE",
    "FINITE",
    "FIT_METHODS",
    "FORMATS",
    "FRACTION",
    "INNER",
    "INTERPOLATIONS",
    "LENGTHS",
    "MODEL_FLAGS",
    "POSITIVE",
    "PROCESSES",
    "PROGRAMS",
    "RANGES",
    "RESULT_FORMATS",
    "SECONDS",
    "SEED",
    "SHARE",
    "SIZE",
    "SOURCES",
    "WEIGHTS",
    "wanted",
]

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

RESULT_FORMATS = ("csv", "json")
"""The formats of an evaluation's results."""

SOURCES = ("hf_hub:", "hf-hub:", "local-dir:")
"""timm's prefixes of a repository on the Hugging Face Hub, or of a folder."""

PROGRAMS = (".onnx", ".pt2")
"""The endings of exported programs."""

WEIGHTS = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors")
"""The endings of files that weights are written to."""

MODEL_FLAGS = {
    "num_classes": "--num-classes",
    "in_chans": "--in-chans",
    "drop_rate": "--drop",
    "drop_path_rate": "--drop-path",
    "global_pool": "--gp",
    "pretrained": "--pretrained",
}
"""The arguments of a model that have flags."""

# The kind of a number, the least, the largest, and whether it has to be above the least.
Range = tuple[type, float, float, bool]

_NEAREST_TO_ONE = math.nextafter(1, 0)
POSITIVE: Range = (int, 1, math.inf, False)
COUNT: Range = (int, 0, math.inf, False)
AMOUNT: Range = (float, 0, math.inf, False)
SIZE: Range = (float, 0, math.inf, True)
FRACTION: Range = (float, 0, 1, False)
SHARE: Range = (float, 0, 1, True)
FINITE: Range = (float, -math.inf, math.inf, False)
BELOW_ONE: Range = (float, 0, _NEAREST_TO_ONE, False)
INNER: Range = (float, 0, _NEAREST_TO_ONE, True)
PROCESSES: Range = (int, 0, 1024, False)
SECONDS: Range = (float, 0, 1e9, False)  # the system takes no more for a time limit
SEED: Range = (int, 0, 2**32 - 1, False)


def wanted(low: float, high: float, above: bool) -> str:
    """Return words on the numbers of a range."""
    if low == -math.inf:
        return "finite"
    least = f"{'more than' if above else 'at least'} {low:g}"
    most = "less than 1" if 0.9 < high < 1 else f"at most {high:g}"
    return least if high == math.inf else f"{least} and {most}"


_BY_RANGE: dict[Range, str] = {
    POSITIVE: "batch_size img_size in_chans input_size train_num_samples val_num_samples validation_batch_size "
    "num_classes grad_accum_steps lr_base_size lr_cycle_limit epochs recount log_interval checkpoint_hist val_interval "
    "log_freq num_gpu",
    COUNT: "start_epoch warmup_epochs cooldown_epochs decay_milestones patience_epochs aug_repeats aug_splits "
    "mixup_off_epoch max_bad_steps recovery_interval log_functions crop_border_pixels",
    AMOUNT: "epoch_repeats opt_betas momentum weight_decay rational_lr_scale rational_weight_decay lr_noise "
    "lr_noise_pct lr_noise_std lr_cycle_decay warmup_lr min_lr color_jitter distill_loss_weight task_loss_weight mixup "
    "cutmix",
    SIZE: "std opt_eps clip_grad lr lr_base lr_cycle_mul lr_k_decay decay_epochs decay_rate scale ratio "
    "bce_pos_weight kd_temperature",
    FRACTION: "max_bad_images layer_decay_min_scale layer_decay_no_opt_scale hflip vflip color_jitter_prob "
    "grayscale_prob gaussian_blur_prob reprob bce_target_thresh cutmix_minmax mixup_prob mixup_switch_prob drop "
    "drop_path model_ema_decay",
    SHARE: "crop_pct layer_decay",
    FINITE: "mean head_init_scale head_init_bias",
    BELOW_ONE: "val_fraction smoothing",
    PROCESSES: "workers",
    SECONDS: "loader_timeout",
    SEED: "seed",
    (int, 0, 10, False): "tta",
}

RANGES: dict[str, Range] = {name: range for range, names in _BY_RANGE.items() for name in names.split()}
"""The numbers that settings of a training or an evaluation may be. They are those of their flags."""

LENGTHS = {
    **dict.fromkeys(("mean", "std", "opt_betas", "lr_noise", "decay_milestones"), 0),
    **{"input_size": 3, "scale": 2, "ratio": 2, "cutmix_minmax": 2},
}
"""The settings of several numbers, and how many these are; 0 is any."""

CHOICES: dict[str, tuple[str, ...]] = {
    "amp_dtype": ("bfloat16", "float16"),
    "clip_mode": ("norm", "value", "agc"),
    "crop_mode": ("center", "squash", "border"),
    "data_backend": ("auto", "timm", "memory", "dali", "dali-cpu"),
    "dist_bn": ("broadcast", "reduce", ""),
    "eval_metric": ("top1", "top5", "loss"),
    "interpolation": ("", *INTERPOLATIONS),
    "kd_distill_type": ("logit",),
    "kd_loss_type": ("kl",),
    "lr_base_scale": ("", "linear", "sqrt"),
    "metrics_avg": ("micro", "macro", "weighted"),
    "mixup_mode": ("batch", "pair", "elem", "half"),
    "model_dtype": ("float32", "bfloat16", "float16"),
    "remode": ("pixel", "rand", "const"),
    "train_crop_mode": ("rrc", "rkrc", "rkrr"),
    "train_interpolation": ("random", *INTERPOLATIONS),
    "worker_seeding": ("all", "part"),
}
"""The names that settings may have, as their flags."""
