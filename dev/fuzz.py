"""Try damaged files, odd flags and odd tensors: ``python -m dev.fuzz --cases 10000``.

Every case has to end within ten seconds in success or in one line that says what is wrong, and never load other numbers
than were written. A case that does not is printed with its number; ``--seed`` and ``--first`` try it again.
"""

import argparse
import contextlib
import copy
import io
import json
import random
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import flashkat
from flashkat import checkpoints
from flashkat.cli.main import main
from flashkat.cli.parser import Parser
from flashkat.cli.sections import training_config
from flashkat.cli.train_flags import add_training_arguments
from flashkat.cli.validate_flags import add_validation_arguments
from flashkat.errors import InputError
from flashkat.training.state import read_resumed

__all__ = ["Fuzz"]

_SECONDS = 10
_TINY = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
_ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 10**12, -(10**7), 0.5, -0.5, 1e300, -1e300, float("nan"), float("inf")),
    *("", "x", "all", "a" * 3000, "\x1b[2J\x1b[31m", "../..", "/dev/null", "hf-hub:a/b", "local-dir:.", "ä\u202eb"),
    *([], [1, 2], ["a"], [[1]], {}, {"a": 1}),
]
_WORDS = [
    "cpu",
    "CMYK",
    "RGB",
    "L",
    "P",
    "I;16",
    "bicubic",
    "random",
    "avg",
    "0",
    "1",
    "2",
    "3",
    "0.5",
    "1e-3",
    "1e9",
    "-1",
]


class Fuzz:
    """Cases by number, each the same whenever it is tried.

    Args:
        folder: an empty one, for the files.
        seed: of all cases.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        torch.manual_seed(0)
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                (folder / "data" / split / name).mkdir(parents=True)
                pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                for number in range(2):
                    Image.fromarray(pixels).save(folder / "data" / split / name / f"{number}.png")
        self._run_once()
        run = folder / "run"
        self.state = torch.load(run / "last.pth.tar", weights_only=True)["state_dict"]
        checkpoints.write_weights(folder / "weights.pth", self.state)
        checkpoints.write_weights(folder / "weights.safetensors", self.state)
        self.files = [run / "last.pth.tar", folder / "weights.pth", folder / "weights.safetensors", run / "args.yaml"]
        self.kinds: list[Callable[[random.Random], None]] = [
            *(self._damaged, self._damaged, self._damaged, self._resumed, self._resumed),
            *(self._stranger, self._flags, self._flags, self._trained, self._parsed, self._operator, self._operator),
        ]

    def _run_once(self) -> None:
        kwargs = [f"{key}={value}" for key, value in _TINY.items()]
        flags = ["--img-size", "8", "--model-kwargs", *kwargs, "-b", "2", "-j", "0", "--epochs", "1", "--device", "cpu"]
        flags += ["--output", str(self.folder), "--experiment", "run", "--opt", "adamw", "--warmup-epochs", "0"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["train", str(self.folder / "data"), *flags]) == 0

    def case(self, number: int) -> str:
        """Try a case; returns its kind, and raises AssertionError where it does not end well."""
        numbers = random.Random(f"{self.seed} {number}")
        kind = numbers.choice(self.kinds)
        with _limit(_SECONDS):
            kind(numbers)
        return kind.__name__.strip("_")

    # --- files --------------------------------------------------------------------------------------------------------

    def _damaged(self, numbers: random.Random) -> None:
        source = numbers.choice(self.files[:3])
        path = self.folder / f"damaged{''.join(source.suffixes)}"
        path.write_bytes(_damage(source.read_bytes(), numbers))
        command = numbers.choice(["read", "read", "read", "export", "validate"])
        if command == "read":
            with contextlib.suppress(InputError):
                found = checkpoints.weights(checkpoints.read(path))
                assert found.keys() == self.state.keys(), "other names were loaded"
                assert all(torch.equal(found[name], self.state[name]) for name in found), "other numbers were loaded"
        elif command == "export":
            _command("export", path, "--output", self.folder / "exported.pth", "--format", "timm")
        else:
            _command("validate", self.folder / "data", "--checkpoint", path, "-j", 0, "-b", 2, "--device", "cpu")

    def _stranger(self, numbers: random.Random) -> None:
        """A whole checkpoint, or a file of flags, that says odd things."""
        if numbers.random() < 0.5:
            checkpoint = torch.load(self.files[0], weights_only=True)
            for _ in range(numbers.randint(1, 3)):
                owner = numbers.choice([checkpoint, checkpoint["args"], checkpoint["args"]["model_kwargs"]])
                if isinstance(owner, dict):
                    keys = [key for key in owner if key not in ("args", "model_kwargs", "state_dict")]
                    owner[numbers.choice([*keys, "checkpoint_path", "cache_dir"])] = numbers.choice(_ODD)
            path = self.folder / "stranger.pth.tar"
            torch.save(checkpoint, path)
            _command("validate", self.folder / "data", "--checkpoint", path, "-j", 0, "-b", 2, "--device", "cpu")
        else:
            flags = yaml.safe_load(self.files[3].read_text())
            flags[numbers.choice(sorted(flags))] = numbers.choice(_ODD)
            path = self.folder / "stranger.yaml"
            path.write_text(yaml.safe_dump(flags))
            parser = Parser(prog="flashkat train")
            add_training_arguments(parser)
            _ends_well(lambda: training_config(parser.parse_args(["-c", str(path), "data"])) and 0, str(path))

    def _resumed(self, numbers: random.Random) -> None:
        checkpoint = torch.load(self.files[0], weights_only=True)
        for _ in range(numbers.randint(1, 2)):
            _replace_somewhere(checkpoint, numbers)
        path = self.folder / "run" / "resumed.pth.tar"
        torch.save(checkpoint, path)
        if numbers.random() < 0.8:
            with contextlib.suppress(InputError):
                read_resumed(str(path), ["cat", "dog"])
        else:
            flags = ["-c", self.folder / "run" / "args.yaml", "--epochs", 2, "--resume", path, "--experiment", "again"]
            _command("train", self.folder / "data", *flags)

    # --- flags --------------------------------------------------------------------------------------------------------

    def _flags(self, numbers: random.Random) -> None:
        parser = Parser(prog="flashkat validate")
        add_validation_arguments(parser)
        flags = _odd_flags(parser, numbers)
        fixed = ["--checkpoint", self.files[0], "-j", 0, "-b", 2, "--device", "cpu"]
        if "--results-file" not in flags and "--torchcompile" not in flags:
            _command("validate", self.folder / "data", *fixed, *flags)

    def _trained(self, numbers: random.Random) -> None:
        parser = Parser(prog="flashkat train")
        add_training_arguments(parser)
        flags = _odd_flags(parser, numbers)
        if not {"--output", "--torchcompile", "--log-wandb", "--epochs", "--cooldown-epochs"} & {*flags}:
            fixed = ["-c", self.files[3], "--epochs", 1, "--output", self.folder / "trained", "--experiment", "run"]
            _command("train", self.folder / "data", *fixed, *flags)

    def _parsed(self, numbers: random.Random) -> None:
        parser = Parser(prog="flashkat train")
        add_training_arguments(parser)
        flags = _odd_flags(parser, numbers)
        _ends_well(lambda: training_config(parser.parse_args(["data", *flags])) and 0, " ".join(flags))

    # --- operators ----------------------------------------------------------------------------------------------------

    def _operator(self, numbers: random.Random) -> None:
        groups, width = numbers.choice([1, 2, 3, 8]), numbers.choice([1, 2, 3, 8, 24])
        shape = [numbers.choice([0, 1, 2, 5]) for _ in range(numbers.randint(0, 3))] + [width]
        dtype = numbers.choice(
            [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64]
        )
        scale = numbers.choice([0.0, 1e-40, 1.0, 1e4, 1e30, 3e38])
        generator = torch.Generator().manual_seed(numbers.randrange(2**31))

        def draw(*sizes: int) -> torch.Tensor:
            return (torch.randn(sizes, generator=generator) * scale).clamp(-3e38, 3e38)

        x = draw(*shape).to(dtype)
        x = x.nan_to_num() if x.is_floating_point() else x
        a = draw(numbers.choice([1, groups]), numbers.choice([1, 6, 9]))
        b = draw(numbers.choice([1, groups]), numbers.choice([0, 1, 4]))
        try:
            x.requires_grad_(x.is_floating_point())
            value = flashkat.rational(x, a, b)
            (dx,) = torch.autograd.grad(value.sum(), x) if x.requires_grad else (x,)
        except (ValueError, TypeError, RuntimeError) as error:
            if str(error).strip():
                return
            raise AssertionError("an error without words") from error
        assert value.shape == x.shape
        assert not value.isnan().any(), f"NaN for {shape} {dtype} {scale}"
        assert not dx.isnan().any(), f"NaN in the gradient for {shape} {dtype} {scale}"


def _damage(data: bytes, numbers: random.Random) -> bytes:
    damaged, length = bytearray(data), len(data)
    kind = numbers.choice(["flip", "flip", "cut", "grow", "zeros", "swap", "noise"])
    start, count = numbers.randrange(length), numbers.choice([1, 16, 512, 4096])
    if kind == "flip":
        for _ in range(numbers.choice([1, 1, 1, 8])):
            damaged[numbers.randrange(length)] ^= 1 << numbers.randrange(8)
    elif kind == "cut":
        del damaged[start:]
    elif kind == "grow":
        damaged += bytes(numbers.choice([1, 64, 70000]))
    elif kind == "zeros":
        damaged[start : start + count] = bytes(len(damaged[start : start + count]))
    elif kind == "noise":
        damaged[start : start + count] = numbers.randbytes(len(damaged[start : start + count]))
    else:
        count = min(count, length // 2)
        one, other = numbers.randrange(length - count), numbers.randrange(length - count)
        damaged[one : one + count], damaged[other : other + count] = (
            data[other : other + count],
            data[one : one + count],
        )
    return bytes(damaged)


def _replace_somewhere(owner: Any, numbers: random.Random) -> None:
    """Put an odd value into nested dictionaries and lists."""
    while True:
        keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
        if not keys:
            return
        key = numbers.choice(keys)
        inner = owner[key]
        if not isinstance(inner, (dict, list)) or not inner or numbers.random() < 0.2:
            if isinstance(owner, (dict, list)):
                owner[key] = copy.deepcopy(numbers.choice(_ODD))
            return
        owner = inner


def _odd_flags(parser: argparse.ArgumentParser, numbers: random.Random) -> list[str]:
    actions = [action for action in parser._actions if action.option_strings and action.dest not in ("help", "config")]
    flags = []
    for action in numbers.sample(actions, numbers.randint(1, 3)):
        if action.dest in ("device_modules", "dataset", "model", "checkpoint", "pretrained", "num_gpu", "workers"):
            continue
        flags.append(action.option_strings[-1])
        if action.nargs != 0:
            many = action.nargs if isinstance(action.nargs, int) else 1
            odd = [str(value) for value in _ODD if not isinstance(value, (list, dict))]
            known = [str(choice) for choice in action.choices or []]
            flags += [numbers.choice([*odd, *_WORDS, *known, *known]) for _ in range(many)]
    return flags


def _command(*argv: object) -> None:
    words = [str(argument) for argument in argv]
    _ends_well(lambda: main(words), " ".join(words))


def _ends_well(run: Callable[[], Any], what: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run()
        except SystemExit as stopped:
            status = stopped.code
    printed = out.getvalue() + err.getvalue()
    assert "\x1b" not in printed, f"{what}: printed an escape"
    if status:
        assert status in (1, 2), f"{what}: status {status}"
        last = err.getvalue().rstrip("\n").rpartition("\n")[2]
        assert ": error: " in last, f"{what}: {last}"
        assert len(last) < 5000, f"{what}: a line of {len(last)} characters"


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tried: dict[str, int] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), args.seed)
        for number in range(args.first, args.first + args.cases):
            try:
                kind = fuzz.case(number)
                tried[kind] = tried.get(kind, 0) + 1
            except Exception:  # whatever it is, it is what is looked for
                failed += 1
                print(f"case {number}:", traceback.format_exc(), flush=True)
    print(json.dumps({"tried": tried, "failed": failed}))
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(_main())
