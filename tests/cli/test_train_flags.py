"""The flags of ``flashkat train``: timm's names, spellings, defaults and meanings."""

import pytest
from parsing import flags_of, parse

# As timm's scripts have them; those that differ are named in the help.
DEFAULTS = {
    "batch_size": 128,
    "img_size": None,
    "crop_pct": None,
    "interpolation": None,
    "mean": None,
    "std": None,
    "train_split": "train",
    "num_classes": None,
    "model_kwargs": {},
    "drop": 0.0,
    "drop_path": None,
    "smoothing": 0.1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "grad_checkpointing": False,
    "opt": "sgd",
    "momentum": 0.9,
    "weight_decay": 2e-5,
    "clip_grad": None,
    "lr": None,
    "lr_base": 0.1,
    "epochs": 300,
    "sched": "cosine",
    "warmup_epochs": 5,
    "warmup_lr": 1e-5,
    "min_lr": 0.0,
    "sched_on_updates": False,
    "no_aug": False,
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "hflip": 0.5,
    "vflip": 0.0,
    "color_jitter": 0.4,
    "aa": None,
    "reprob": 0.0,
    "remode": "pixel",
    "train_interpolation": "random",
    "model_ema": False,
    "model_ema_decay": 0.9998,
    "model_ema_warmup": False,
    "amp": False,
    "seed": 42,
    "log_interval": 50,
    "experiment": "",
    **{"train_split": "train", "val_split": "validation", "grad_accum_steps": 1, "clip_mode": "norm"},
    **{"lr_base_size": 256, "lr_base_scale": "", "lr_noise": None, "lr_noise_pct": 0.67, "lr_noise_std": 1.0},
    **{"lr_cycle_mul": 1.0, "lr_cycle_decay": 0.5, "lr_cycle_limit": 1, "lr_k_decay": 1.0, "epoch_repeats": 0.0},
    **{"decay_milestones": [90, 180, 270], "cooldown_epochs": 0, "patience_epochs": 10, "decay_rate": 0.1},
    **{"start_epoch": None, "warmup_prefix": False, "color_jitter_prob": None, "aug_repeats": 0, "aug_splits": 0},
    **{"recount": 1, "resplit": False, "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "mixup_mode": "batch"},
    **{"mixup_off_epoch": 0, "cutmix_minmax": None, "bce_target_thresh": None, "dist_bn": "reduce"},
    **{"model_ema_force_cpu": False, "worker_seeding": "all", "recovery_interval": 0, "checkpoint_hist": 10},
    **{"eval_metric": "top1", "tta": 0, "layer_decay": None, "layer_decay_min_scale": 0.0, "opt_kwargs": {}},
    **{"opt_eps": None, "opt_betas": None, "validation_batch_size": None, "torchcompile": None},
    **{"head_init_scale": None, "wandb_tags": [], "resume": "", "initial_checkpoint": "", "pretrained": False},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_timms(name):
    assert getattr(parse("train", "data"), name) == DEFAULTS[name]


def test_values():
    args = parse(
        "train",
        *("data", "-b", 16, "-j", 0, "--mean", 0.1, 0.2, 0.3, "--scale", 0.5, 1, "--device", "cpu"),
        *("--model-kwargs", "m=5", "act_init=gelu", "init_values=1e-4", "class_token=False"),
    )
    assert args.data_dir == "data"
    assert (args.batch_size, args.workers) == (16, 0)
    assert args.mean == [0.1, 0.2, 0.3]
    assert args.scale == [0.5, 1.0]
    assert args.model_kwargs == {"m": 5, "act_init": "gelu", "init_values": 1e-4, "class_token": False}


def test_other_spellings():
    args = parse("train", "data", "-vb", 7, "--dr", 0.5, "--local_rank", 3, "-m", "vit_tiny_patch16_224")
    assert (args.validation_batch_size, args.decay_rate, args.local_rank) == (7, 0.5, 3)
    assert args.model == "vit_tiny_patch16_224"
    assert parse("train", "--data-dir", "elsewhere", "-b", 3).data_dir == "elsewhere"
    assert parse("train", "-b", 3, "elsewhere").data_dir == "elsewhere"
    assert parse("train", "data", "--torchcompile").torchcompile == "inductor"


def test_compiling_and_not_contradict_each_other(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("train", "data", "--torchcompile", "--no-compile")
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--no-compile: not allowed with argument --torchcompile" in err
    assert "--no-compile" not in flags_of("validate")
