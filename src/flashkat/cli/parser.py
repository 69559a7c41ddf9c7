"""An argument parser whose errors are one line, that suggests the nearest flag, and that reads ``--config`` files."""

import argparse
import ast
import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from .. import defaults
from ..defaults import MODEL_FLAGS, SOURCES
from ..errors import InputError, show_once
from ..system.terminal import printable
from .left_out import LEFT_OUT

__all__ = [
    "Instead",
    "KeyValues",
    "ModelKwargs",
    "Parser",
    "amount",
    "as_sentence",
    "below_one",
    "count",
    "finite",
    "fraction",
    "inner",
    "number",
    "positive",
    "processes",
    "seconds",
    "seed",
    "share",
    "size",
]


# The largest whole number. PyTorch multiplies such numbers in 64 bits.
_MOST = 2**31 - 1

# Characters of a file of flags, and values in it.
_LONGEST, _MOST_VALUES = 10**5, 10**4

# Booleans as shells and YAML write them. As a string, "false" would count as true.
_BOOLEANS = {"true": "True", "false": "False"}


# Flags that import or run code, and that name models. A file may set neither to something outside timm's registry.
_CODE = ("device_modules", "dataset_trust_remote_code")
_MODELS = ("model", "kd_model_name")
_PLACES = ("data_dir", "train_split", "val_split", "split")


class _Refused:
    """A value that a file may not set. It is an error unless the command line overrides it."""

    def __init__(self, message: str) -> None:
        self.message = message


def _refusal(name: str, value: Any, flag: str, where: str) -> str:
    """Return why a ``--config`` file may not give a flag this value, "" if it may."""
    typed = f"the command line alone may, with {flag}"
    if name in _CODE and value:
        return f"{where}: a file may not ask for code to be run: {typed}"
    if name in _MODELS and str(value).startswith(SOURCES):
        return f"{where}: a file may not name a model outside timm's registry: {typed}"
    if name in _PLACES and "pipe:" in str(value):
        return f"{where}: a file may not name commands to read from: {typed}"
    return ""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and that takes no abbreviations.

    If there is a ``--config`` flag, its YAML file gives values, which the command line overrides. ``checks`` are called
    with the parsed flags, and raise ArgumentTypeError if these contradict each other.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})
        self.checks: list[Callable[[argparse.Namespace], None]] = []

    def introduce(self, usage: str, *lines: str) -> None:
        """Begin the help with a short usage and these lines, in place of a list of all flags.

        Args:
            usage: what follows the command's name.
            *lines: shown as they are; a blank one separates paragraphs.
        """
        self.usage, self.description = f"%(prog)s {usage}", "\n".join(lines)
        self.formatter_class = argparse.RawDescriptionHelpFormatter

    @property
    def themes(self) -> list[str]:
        """The titles of the groups of flags, in their order."""
        return [group.title for group in self._action_groups[2:] if group.title]

    def typed(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words of a command line that give flags these values, ``data_dir`` first and without its flag.

        Values that a flag cannot say, such as None and the False of a switch, are left out.
        """
        actions = {action.dest: action for action in self._actions if action.option_strings}
        words = [str(values["data_dir"])] if values.get("data_dir") is not None else []
        for name, value in values.items():
            if name not in ("data_dir", "config") and value is not None:
                words += _words(actions[name], value)
        return words

    def error(self, message: str) -> NoReturn:
        line = printable(f"{self.prog}: error: {message}; {self.prog} --help lists the flags")
        show_once(lambda: print(line, file=sys.stderr, flush=True))
        sys.exit(2)

    def parse_known_args(self, args=None, namespace=None):
        """Refuse what is not known; argparse asks subcommands for it too, which then answer for their own flags."""
        args = sys.argv[1:] if args is None else list(args)
        if "--config" in self._option_string_actions:
            namespace = self._with_config(args, namespace or argparse.Namespace())
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._describe_unknown(unknown[0]))
        for value in vars(parsed).values():
            if isinstance(value, _Refused):
                self.error(value.message)
        for check in self.checks:
            try:
                check(parsed)
            except argparse.ArgumentTypeError as error:
                self.error(str(error))
        return parsed, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggest the nearest choice for a mistyped one."""
        nearest = difflib.get_close_matches(str(value), map(str, action.choices or ()), n=1)
        if nearest and value not in (action.choices or ()):
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}, did you mean {nearest[0]!r}")
        super()._check_value(action, value)

    def _describe_unknown(self, argument: str) -> str:
        name = argument.split("=")[0]
        if name in LEFT_OUT and "--config" in self._option_string_actions:
            return f"{name} is a flag of timm's that is left out here: {LEFT_OUT[name].reason}"
        flags = [flag for flag in self._option_string_actions if flag != "--help" and "_" not in flag]
        nearest = difflib.get_close_matches(name, flags, n=1)
        return f"unknown argument {argument}{f', did you mean {nearest[0]}' if nearest else ''}"

    def _with_config(self, args: list[str], namespace: argparse.Namespace) -> argparse.Namespace:
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        finder.add_argument("-c", "--config", default="")
        try:
            path = finder.parse_known_args(args)[0].config
        except argparse.ArgumentError:  # without its value, which the real parser will say
            return namespace
        if path:
            for name, value in self._read_config(path).items():
                setattr(namespace, name, value)
        return namespace

    def _read_config(self, path: str) -> dict[str, Any]:
        import yaml

        from ..checkpoints.structure import fault_of_structure

        try:
            with Path(path).open() as file:
                text = file.read(_LONGEST + 1)
            is_long = len(text) > _LONGEST
            content = {} if is_long else yaml.safe_load(text)
        except OSError as error:
            self.error(f"cannot read the --config {path}: {error.strerror}")
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # of bytes, numbers and depth
            self.error(f"the --config {path} is not YAML: {' '.join(str(error).split()):.500}")
        fault = f"more than {_LONGEST:,} characters" if is_long else fault_of_structure(content, _MOST_VALUES)
        if fault:
            self.error(f"the --config {path} has {fault}: give a file of flags, such as a run's args.yaml")
        if not isinstance(content, dict):
            self.error(f"the --config {path} has to hold NAME: VALUE lines, as in a run's args.yaml")
        actions = {action.dest: action for action in self._actions if action.option_strings or action.dest != "help"}
        values: dict[str, Any] = {}
        for key, value in content.items():
            name = str(key).replace("-", "_")
            name = "data_dir" if name == "data" else name
            flag = "--" + name.replace("_", "-")
            if name in actions and name not in ("help", "config"):
                if value is not None or name not in values:
                    where = f"{key} in {path}"
                    refusal = _refusal(name, value, flag, where)
                    values[name] = _Refused(refusal) if refusal else self._converted(actions[name], value, where)
            elif name == "config":
                continue
            elif flag in LEFT_OUT:
                if value and LEFT_OUT[flag].is_switch:
                    self.error(f"{key} in {path} is a flag of timm's that is left out here: {LEFT_OUT[flag].reason}")
            else:
                nearest = difflib.get_close_matches(name, actions, n=1)
                self.error(f"unknown {key} in {path}{f', did you mean {nearest[0]}' if nearest else ''}")
        kwargs = values.get("model_kwargs")
        if isinstance(kwargs, dict) and "img_size" in kwargs:
            size = kwargs.pop("img_size")
            if values.get("img_size") is None:
                values["img_size"] = self._converted(actions["img_size"], size, f"img_size of model_kwargs in {path}")
        return values

    def _converted(self, action: argparse.Action, value: Any, where: str) -> Any:
        if value is None:
            # Only of these two kinds None is no value.
            return action.default if isinstance(action.default, bool) else {} if isinstance(action, KeyValues) else None
        try:
            if isinstance(action, KeyValues):
                if not isinstance(value, dict):
                    raise argparse.ArgumentTypeError(f"takes names and values, not {value!r}")
                action.check(value, self)
                try:
                    return action.from_file(value, where)
                except InputError as error:
                    return _Refused(str(error))
            if action.nargs == 0:
                if not isinstance(value, bool):
                    raise argparse.ArgumentTypeError(f"is true or false, not {value!r}")
                return value
            many = action.nargs in ("+", "*") or isinstance(action.nargs, int)
            items = value if isinstance(value, (list, tuple)) else [value]
            if (not many and len(items) != 1) or (isinstance(action.nargs, int) and len(items) != action.nargs):
                raise argparse.ArgumentTypeError(f"takes {action.nargs or 1} values, not {len(items)}")
            convert: Any = action.type or str
            converted = [convert(str(item)) for item in items]
            for item in converted:
                if action.choices is not None and item not in action.choices:
                    raise argparse.ArgumentTypeError(f"is one of {', '.join(map(str, action.choices))}, not {item!r}")
        except (argparse.ArgumentTypeError, ValueError) as error:
            self.error(f"{where}: {error}")
        return converted if many else converted[0]


def _words(action: argparse.Action, value: Any) -> list[str]:
    """Return the words that give a flag its value."""
    flag = max(action.option_strings, key=lambda option: (option.startswith("--") and "_" not in option, -len(option)))
    if isinstance(action, argparse.BooleanOptionalAction):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if action.nargs == 0:
        return [flag] if value else []
    if isinstance(action, KeyValues):
        return [flag, *(f"{key}={_literal(each)}" for key, each in value.items())] if value else []
    items = [_short(each) for each in (value if isinstance(value, (list, tuple)) else [value])]
    # A value that begins like a flag needs the equals sign.
    return [f"{flag}={items[0]}"] if len(items) == 1 and items[0].startswith("-") else [flag, *items] if items else []


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _literal(value: Any) -> str:
    """Return a value of KEY=VALUE, with quotes if it is a text that would be read as something else."""
    if not isinstance(value, str):
        return repr(value)
    try:
        ast.literal_eval(_BOOLEANS.get(value, value))
    except (ValueError, SyntaxError):
        return value if "=" not in value else repr(value)
    return repr(value)


class Instead(argparse.Action):
    """Stores a value and undoes what a ``--config`` file said by flags that contradict this one, which is typed.

    ``of`` has the values that these go back to.
    """

    def __init__(self, *args, of: dict[str, Any], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.of = of

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        for name, value in self.of.items():
            setattr(namespace, name, value)


class KeyValues(argparse.Action):
    """KEY=VALUE pairs, with Python's literals for values, that keep away from what has a flag of its own."""

    flags: ClassVar[dict[str, str]] = {}

    def check(self, keys: Iterable[str], parser: argparse.ArgumentParser) -> None:
        """Raise ArgumentTypeError for a key that a flag of the parser sets."""
        for key in keys:
            if self.flags.get(key) in parser._option_string_actions:
                raise argparse.ArgumentTypeError(f"cannot set {key}: use {self.flags[key]}")

    def from_file(self, values: dict[Any, Any], where: str) -> dict[str, Any]:
        """Return pairs of a ``--config`` file, unless it may not give one of them."""
        for key, value in values.items():
            items = value if isinstance(value, list) else [value]
            if not all(each is None or isinstance(each, (bool, int, float, str)) for each in items):
                raise InputError(f"{where}: {key} has to be a number, a word or a list of them")
        return values

    def __call__(self, parser, namespace, values, option_string=None):
        pairs: dict[str, Any] = {}
        for value in values:
            key, equals, text = value.partition("=")
            if not equals:
                raise argparse.ArgumentError(self, f"takes KEY=VALUE, not {value!r}")
            try:
                pairs[key] = ast.literal_eval(_BOOLEANS.get(text, text))
            except (ValueError, SyntaxError) as error:
                if "=" in text:
                    wrong = f"takes KEY=VALUE pairs with spaces between them and no quotes around all, not {value!r}"
                    raise argparse.ArgumentError(self, wrong) from error
                pairs[key] = text
        try:
            self.check(pairs, parser)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, pairs)


class ModelKwargs(KeyValues):
    """KEY=VALUE pairs for a model; those of a file are an architecture and no more.

    ``img_size``, the only way to another size in KAT's code, means ``--img-size``.
    """

    def from_file(self, values: dict[Any, Any], where: str) -> dict[str, Any]:
        """Return pairs of a ``--config`` file, unless it may not give one of them."""
        from ..models.architecture import check_arguments

        return check_arguments(values, where)

    def __call__(self, parser, namespace, values, option_string=None):
        super().__call__(parser, namespace, values, option_string)
        pairs = getattr(namespace, self.dest)
        if "img_size" in pairs:
            try:
                namespace.img_size = positive(str(pairs.pop("img_size")))
            except (argparse.ArgumentTypeError, ValueError) as error:
                raise argparse.ArgumentError(self, f"img_size is a side in pixels: {error}") from error

    flags: ClassVar[dict[str, str]] = MODEL_FLAGS


def as_sentence(text: str) -> str:
    """Return a command's one-line help as the sentence that its own help begins with."""
    return f"{text[0].upper()}{text[1:]}."


def number(kind: type, low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """Make a converter for argparse: to an int or a float from ``low``, or above it, to ``high``."""
    top = min(high, _MOST) if kind is int and high == math.inf else high

    def convert(text: str) -> float:
        if "," in text:
            raise argparse.ArgumentTypeError(f"takes numbers with spaces between them, not {text!r}")
        # timm has floats for some whole numbers, and its args.yaml 3.0.
        value = kind(text.removesuffix(".0") if kind is int else text)
        if not (low <= value <= top and math.isfinite(value)) or (above and value == low):
            says_top = high < math.inf or top < value < math.inf
            words = defaults.wanted(low, top if says_top else math.inf, above)
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return value

    # argparse says "invalid NAME value".
    convert.__name__ = "whole number" if kind is int else "number"
    convert.range = kind, low, high, above  # type: ignore[attr-defined]
    return convert


positive = number(*defaults.POSITIVE)
count = number(*defaults.COUNT)
processes = number(*defaults.PROCESSES)
seed = number(*defaults.SEED)
amount = number(*defaults.AMOUNT)
seconds = number(*defaults.SECONDS)
finite = number(*defaults.FINITE)
size = number(*defaults.SIZE)
fraction = number(*defaults.FRACTION)
below_one = number(*defaults.BELOW_ONE)
share = number(*defaults.SHARE)
inner = number(*defaults.INNER)
