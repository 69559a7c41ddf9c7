"""Results as the benchmarks write them, with made-up numbers."""

import itertools

import pytest
import torch

from benchmarks.parts import common


@pytest.fixture(scope="session")
def device():
    """Where Triton kernels run: on a GPU, or interpreted."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def clock():
    """Measures one millisecond for each call."""

    def measure(call):
        call()
        return 1000.0

    return measure


@pytest.fixture
def no_code(monkeypatch):
    """A compiler that generates none."""
    compile_model = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic, mode="": compile_model(model, dynamic=dynamic, backend="aot_eager")
    )


ENVIRONMENT = {
    "commit": "0123456789", "uncommitted_changes": False, "date": "2026-01-02", "torch": "2.11", "triton": "3.6",
    "cpu": "a CPU", "cpu_threads": 2, "gpu": "a GPU",
}  # fmt: skip


def _kernel_rows():
    for direction in ("forward", "backward"):
        for width in (192, 768, 3072):
            for index, name in enumerate(("ours", "gelu", "kat")):
                yield {
                    "case": "default", "direction": direction, "contender": name, "shape": [128, 197, width],
                    "dtype": "bf16", "numerator_rows": 1, "median_us": (index + 1) * width / 10, "bytes": width * 1000,
                    "copy_gb_per_s": 3000.0, "of_copy": 0.876,
                }  # fmt: skip


def _outlier_rows():
    for direction, factor in (("forward", 1), ("backward", 2)):
        for time, outliers in ((10.0, "none"), (11.0, "number"), (25.0 * factor, "channel")):
            yield {
                "case": "outliers", "direction": direction, "contender": "ours", "shape": [128, 197, 1536],
                "dtype": "bf16", "numerator_rows": 1, "median_us": time, "outliers": outliers,
            }  # fmt: skip


def _trained(name, seed, top1, speed):
    curve = {"epoch": [1, 2], "eval_top1": [50.0, top1], "eval_ema_top1": [50.0, top1]}
    return {
        "contender": name, "seed": seed, "parameters": 5363674, "epochs": 2, "top1": top1, "ema_top1": top1 + 0.5,
        "curve": curve,
        "images_per_second": None, "seconds_per_epoch": None, "images_per_second_together": speed,
        "seconds_per_epoch_together": speed, "data_wait_together": None, "train_losses": [2.0, 1.0],
        "peak_memory_gib": 1.234,
    }  # fmt: skip


def _studied(name, seed, top1, split="test", epochs=300, from_epochs=0):
    function = {"layer": "blocks.0.mlp.act2", "nearest": "elu", "share": 1.0, "distance": 0.1, "moved": 0.25}
    return {
        "contender": name, "seed": seed, "split": split, "epochs": epochs, "from_epochs": from_epochs,
        "parameters": 1000, "gflops": 0.1234, "top1": top1, "ema_top1": top1 + 1, "finite": True, "train_loss": 1.0,
        "images_per_second": 12345.6, "commit": "0123456789",
        "curve": {"epoch": [1, 2, 3], "top1": [top1 - 1, top1 - 0.5, top1], "ema_top1": [top1, top1, top1 + 1]},
        "functions": [{**function, "slope_at_0": 0.5 + seed / 10}] if name.startswith("kat") else [],
    }  # fmt: skip


def _study_rows():
    for seed in (1, 2, 3):
        yield _studied("kat,opt=muon", seed, 91.0 + seed / 2)
        yield _studied("vit,lr=2e-3", seed, 90.0 + (0 if seed < 3 else 2.5))
        yield _studied("vit,from=vit", seed, 90.0, epochs=3, from_epochs=100)
        yield _studied("kat,start=gelu,from=vit", seed, 90.5 if seed < 3 else 88.0, epochs=3, from_epochs=100)
    for name, top1 in (("kat", 88.0), ("kat,lr=2e-3", 89.0), ("kat,degrees=5-4", 88.5), ("vit", 87.0)):
        for seed in (1, 2):
            yield _studied(name, seed, top1 + seed / 10, "validation", 100)


STUDY = (
    {"recipe": {"degrees": "3-2", "lr": "1e-3"}, "size": "tiny", "model": "patch_size=4", "flags": "--img-size 32"},
    list(_study_rows()),
    [],
)


def _model_rows(**case):
    for size, way in itertools.product(("tiny", "small"), ("eager", "compiled")):
        for name, rate in (("ours", 5950.0), ("vit", 5000.0), ("kat", 83.0)):
            if (size, way, name) != ("small", "eager", "kat"):
                ratios = {"over_vit": rate / 5000, "peak_over_vit": 1.0}
                numbers = {"contender": name, "images_per_s": rate, "peak_gib": 2.345, **ratios}
                yield {**case, "size": size, "way": way, **numbers}


def _loading_row(workers, backend="timm", factor=1):
    speeds = {"images_per_s": 250.0 * factor * workers, "step_images_per_s": 2000.0, "over_step": factor * workers / 8}
    return {"images": "photographs", "pixels": 224, "backend": backend, "workers": workers, **speeds}


DOCUMENTS = {
    "training": ({}, list(_model_rows(case="bf16", batch=128)), [common.target("speed", 1.19, 1.0, at_least=True)]),
    "inference": ({}, [*_model_rows(batch=256), *_model_rows(batch=1)], []),
    "loading": ({}, [*(_loading_row(workers) for workers in (1, 2, 16)), _loading_row(2, "dali", 4)], []),
    "kernels": (
        {},
        [*_kernel_rows(), *_outlier_rows()],
        [common.target("forward", 1.04, 1.05), common.target("backward", 1.234, 1.08)],
    ),
    "export": (
        {},
        [
            {"model": model, "way": way, "ms": ms, "min ms": ms, "difference": 1e-6 if way == "onnx" else 0.0}
            for model, factor in (("KAT-T", 1.5), ("ViT-T", 1.0))
            for way, ms in (("eager", 30.0 * factor), ("onnx", 20.0 * factor))
        ],
        [],
    ),
    "rounding": (
        {"seeds": 15},
        [
            {
                "batch": batch, "contender": name, "same_bits": name == "ours",
                "da_error": error, "da_error_max": 2 * error, "da_variance": error**2,
                "db_error": 2 * error, "db_error_max": 4 * error, "db_variance": 4 * error**2,
            }
            for name, error in (("ours", 6e-5), ("floor", 7e-5), ("kat", 1.3e-2))
            for batch in ((128, 256) if name != "kat" else (128,))
        ],
        [common.requirement("the same bits", True)],
    ),
    "host_time": (
        {},
        [
            {"dtype": dtype, "what": what, "contender": name, "median_us": time}
            for dtype in ("fp32", "bf16")
            for what in ("forward and backward", "forward alone")
            for name, time in (("ours", 45.67), ("gelu", 24.0))
        ],
        [],
    ),
    "scaling": (
        {},
        [
            {"elements": 2**power, "direction": direction, "contender": name, "gb_per_s": 2900.0, "right": True}
            for power in (16, 30)
            for direction in ("forward", "backward")
            for name in ("ours", "gelu")
        ],
        [],
    ),
    "scaling_gpus": (
        {"batch_per_gpu": 128, "ways": {"default": "", "bare": ""}},
        [
            {"size": "tiny", "way": "bare", "gpus": 1, "contender": "ours", "images_per_s": 16100.0},
            *(
                {
                    "size": "tiny", "way": "default", "gpus": gpus, "contender": name, "images_per_s": rate,
                    "over_vit": over, "peak_gib": 2.345, **({"all_reduce_ms": 0.25} if gpus > 1 else {}),
                }
                for gpus, name, rate, over in (
                    (1, "ours", 16000.0, 1.0), (1, "vit", 16000.0, 1.0),
                    (2, "ours", 31360.0, 1.0316), (2, "vit", 30400.0, 1.0),
                )
            ),
        ],
        [],
    ),
    "cpu": (
        {},
        [
            {
                "case": "fp32 (8, 197, 768)", "forward ratio": 0.84, "both ratio": 1.26,
                **{f"{name} {what} ms": 1.234 for name in ("ours", "gelu", "aten") for what in ("forward", "both")},
            }
        ],
        [common.target("both", 1.26, 1.5)],
    ),
    "curves": (
        {"steps": 4, "batch_size": 128, "mean_over": 2, "apart": 0.001},
        [
            {
                "pair": "timm-fp32-formula", "one": "KAT, timm start, formula, fp32",
                "other": "KAT, timm start, eager, fp32", "steps": 4,
                "first_loss": 2.3, "apart_at_step": 3, "last_losses": [1.25, 1.26], "largest_difference": 0.034,
                "largest_difference_of_means": 0.0123, "curves": [[2.3, 2.0, 1.5, 1.0], [2.3, 2.0, 1.534, 1.0]],
            }
        ],
        [],
    ),
    "cifar10": (
        {
            "batch_size": 128, "gpus": 2, "val_interval": 5, "epochs": 100, "mixed_epochs": 76,
            "flags": "--scale 0.5 1", "contenders": {"KAT": "--model kat", "ViT": "--model vit"},
            "seeds": [1, 2],
        },
        [
            _trained("KAT", 1, 91.25, {"median": 12345.6, "min": 12000.0, "max": 13000.0}),
            _trained("ViT", 1, 90.5, None), _trained("KAT", 2, 91.75, None), _trained("ViT", 2, 90.0, None),
        ],
        [common.target("KAT's top-1", 91.25, 88, at_least=True)],
    ),
    "recipes_cifar10": STUDY,
    "recipes_cifar10_narrow": STUDY,
    "recipes_digits": STUDY,
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A folder of results."""
    for name, (settings, rows, targets) in DOCUMENTS.items():
        document = {"environment": ENVIRONMENT, "settings": settings, "rows": rows, "targets": targets}
        common.write(tmp_path / f"{name}.json", {"benchmark": name, **document})
    return tmp_path
