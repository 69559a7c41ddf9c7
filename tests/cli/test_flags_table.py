"""Every flag of timm's scripts is there or is left out with a reason, the page says which, and files of flags work."""

from pathlib import Path

import pytest
import yaml

from flashkat.cli.flags_table import table
from flashkat.cli.left_out import LEFT_OUT
from flashkat.cli.main import main
from flashkat.cli.parser import Parser
from flashkat.cli.train_flags import add_training_arguments
from flashkat.cli.validate_flags import add_validation_arguments

ROOT = Path(__file__).parents[2]
TIMM = [
    word
    for line in Path(__file__).parents[1].joinpath("timm_flags.txt").read_text().splitlines()
    if not line.startswith("#")
    for word in line.split()
]


def parser_of(command):
    parser = Parser(prog=f"flashkat {command}")
    {"train": add_training_arguments, "validate": add_validation_arguments}[command](parser)
    return parser


def parse(command, *argv):
    return parser_of(command).parse_args([str(argument) for argument in argv])


def flags_of(command):
    return {option for action in parser_of(command)._actions for option in action.option_strings}


OURS = flags_of("train") | flags_of("validate")


@pytest.mark.parametrize("flag", TIMM)
def test_every_flag_of_timms_is_accounted_for(flag):
    assert (flag in OURS) != (flag in LEFT_OUT)
    assert f"`{flag}`" in (ROOT / "docs/reference/flags.md").read_text()


def test_the_page_is_what_the_program_says():
    assert (ROOT / "docs/reference/flags.md").read_text() == table(), "make flags writes it anew"


@pytest.mark.parametrize("flag", LEFT_OUT)
def test_a_flag_that_is_left_out_says_why(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "data", flag, "1"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{flag} is a flag of timm's that is left out here: {LEFT_OUT[flag].reason}" in err


# As timm's scripts have them, where the value is not None, False or empty.
DEFAULTS = {
    "train": {
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
    },
    "validate": {
        **{"split": "validation", "batch_size": 256, "num_gpu": 1, "results_format": "csv", "results_file": ""},
        **{"use_train_size": False, "crop_mode": None, "crop_border_pixels": None, "real_labels": "", "log_freq": 10},
        **{"valid_labels": "", "retry": False, "num_samples": None, "dataset": "", "class_map": ""},
    },
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in DEFAULTS for name in DEFAULTS[command]])
def test_defaults_are_timms(command, name):
    assert getattr(parse(command, "data"), name) == DEFAULTS[command][name]


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


def test_data_that_needs_no_folder():
    assert parse("train", "--fake-data").data_dir is None
    assert parse("train", "--dataset", "hfds/food101").data_dir is None
    with pytest.raises(SystemExit):
        parse("train", "--dataset", "torch/cifar10")


# --- files of flags ---------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    def write(**values):
        (tmp_path / "flags.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "flags.yaml"

    return write


def test_values_of_a_file(config):
    path = config(
        **{"data_dir": "images", "batch-size": 16, "lr": "1e-3", "mean": [0.1, 0.2, 0.3], "model_ema": True},
        **{"model_kwargs": {"m": 5, "act_init": "gelu"}, "aa": None, "torchcompile": "aot_eager", "scale": [0.5, 1]},
    )
    args = parse("train", "-c", path)
    assert (args.data_dir, args.batch_size, args.lr, args.mean) == ("images", 16, 1e-3, [0.1, 0.2, 0.3])
    assert args.model_ema is True
    assert args.model_kwargs == {"m": 5, "act_init": "gelu"}
    assert (args.torchcompile, args.scale, args.aa, args.epochs) == ("aot_eager", [0.5, 1.0], None, 300)


def test_typed_flags_win(config):
    path = config(data_dir="images", batch_size=16, epochs=3)
    args = parse("train", "typed", "--config", path, "-b", 8)
    assert (args.data_dir, args.batch_size, args.epochs) == ("typed", 8, 3)


@pytest.mark.parametrize(
    ("values", "typed", "expected"),
    [
        ({"torchcompile": "inductor"}, [], ("inductor", False)),
        ({"torchcompile": "inductor"}, ["--no-compile"], (None, True)),
        ({"no_compile": True}, [], (None, True)),
        ({"no_compile": True}, ["--torchcompile", "eager"], ("eager", False)),
    ],
)
def test_typed_flags_win_over_those_that_contradict_them(config, values, typed, expected):
    args = parse("train", "data", "-c", config(**values), *typed)
    assert (args.torchcompile, args.no_compile) == expected


def test_a_runs_own_arguments_are_such_a_file(config):
    args = parse("train", "data", "--opt-betas", 0.9, 0.95, "--lr-noise", 0.4, "--input-size", 3, 8, 8, "--amp")
    again = vars(parse("train", "-c", config(**vars(args))))
    assert {**again, "config": ""} == vars(args)


def test_timms_own_arguments_are_such_a_file(config):
    timms = {"data": "images", "data_dir": None, "dataset": "", "torchscript": False, "fuser": "", "amp_impl": "native"}
    timms |= {"bn_momentum": None, "drop_block": None, "split_bn": False, "naflex_loader": False, "local_rank": 0}
    timms |= {"naflex_max_seq_len": 576, "decay_epochs": 90, "amp_dtype": "float16", "color_jitter": 0.4}
    timms |= {"interpolation": "", "aug_repeats": 3.0}
    args = parse("train", "-c", config(**timms))
    assert args.data_dir == "images"
    assert args.amp_dtype == "float16"
    assert not args.interpolation
    assert args.aug_repeats == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epohcs": 3}, ["unknown epohcs", "did you mean epochs"]),
        ({"epochs": 0}, ["epochs in", "at least 1"]),
        ({"epochs": "many"}, ["epochs in", "many"]),
        ({"amp": "yes"}, ["amp in", "true or false"]),
        ({"mean": "grey"}, ["mean in", "grey"]),
        ({"scale": [1]}, ["scale in", "2 values"]),
        ({"model_kwargs": ["m=5"]}, ["names and values"]),
        ({"model_kwargs": {"img_size": 8}}, ["cannot set img_size: use --img-size"]),
        ({"remode": "zz"}, ["remode in", "const", "'zz'"]),
        ({"torchscript": True}, ["left out here"]),
    ],
)
def test_mistakes_in_a_file(config, values, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("train", "data", "-c", config(**values))
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize(("text", "words"), [(None, "cannot read"), ("a: [", "is not YAML"), ("text", "NAME: VALUE")])
def test_a_file_that_is_none(tmp_path, text, words, capsys):
    if text is not None:
        (tmp_path / "flags.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        parse("train", "data", "-c", tmp_path / "flags.yaml")
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
