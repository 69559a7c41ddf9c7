"""The ``flashkat`` command: parse the flags, run a subcommand, and report bad input in one line with status 2.

PyTorch and timm are imported once the flags are read. Help and typos need neither.
"""

import argparse
import codecs
import io
import json
import os
import shlex
import sys
import traceback
import warnings
from typing import NoReturn

from ..defaults import PROGRAMS, WEIGHTS
from ..errors import DivergedError, InputError, Stopped, is_out_of_memory, launched_processes, show_once
from ..system.interrupts import end_children, interruptible, leave, stoppable
from ..system.terminal import printable
from .parser import Parser, as_sentence
from .tool_flags import (
    add_data_commands,
    add_export_arguments,
    add_finetune_arguments,
    add_fit_arguments,
    add_flops_arguments,
    add_inspect_arguments,
    add_plot_arguments,
    add_predict_arguments,
)
from .train_flags import add_training_arguments
from .validate_flags import add_validation_arguments

__all__ = ["main", "run"]


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return the exit status: 1 for a failed run, 2 for bad input, 128 and more for a signal."""
    program = "flashkat"
    try:
        args = vars(_parser().parse_args(argv))
        run, program = args.pop("run"), f"flashkat {args.pop('command')}"
        with interruptible(), warnings.catch_warnings():
            # Pillow warns of large images, and refuses those of twice that size.
            warnings.filterwarnings("ignore", ".* could be decompression bomb")
            status = run(argparse.Namespace(**args)) or 0
            if sys.stdout is not None:  # a program without a terminal may have none
                sys.stdout.flush()
    except InputError as error:
        return _fail(program, str(error), status=2)
    except DivergedError as error:
        return _fail(program, str(error), status=1)
    except Stopped as error:
        return _fail(program, f"stopped{error}", status=error.status)
    except KeyboardInterrupt as error:
        return _fail(program, f"interrupted{error}", status=130)
    except BrokenPipeError:
        # The reader of our output has ended. Python would report a second failure when it flushes.
        sys.stderr.close()
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "flashkat").startswith("flashkat"):
            raise
        how = "pip install 'flashkat[training]', in a checkout pip install -e '.[training]'"
        return _fail(program, f"{error}: install what it needs with {how}", status=1)
    except OSError as error:  # names too long, disks full, files that went away
        about = f"{error.filename}: " if error.filename is not None else ""
        return _fail(program, f"{about}{error.strerror or error}", status=2)
    except Exception as error:
        if _is_memory_short(error):
            return _fail(program, f"not enough memory ({error!s:.200}): give smaller sizes, see --help", status=1)
        if launched_processes() == 1:
            raise
        show_once(traceback.print_exc)
        return 1
    return status


def run(argv: list[str] | None = None) -> NoReturn:
    """Run :func:`main`, and end the process with its status. Where it failed, processes that load images end too."""
    try:
        with stoppable():
            _take_any_name()
            status = main(argv)
    except Stopped as error:  # before main caught it, or after
        status = error.status
    if status:
        end_children()
    leave(status)


def _take_any_name() -> None:
    """Let the streams take names that their encoding lacks: names of files may be any bytes."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            is_unicode = stream is sys.stdin or codecs.lookup(stream.encoding).name == "utf-8"
            stream.reconfigure(errors="surrogateescape" if is_unicode else "backslashreplace")


def _is_memory_short(error: Exception) -> bool:
    # On CPUs only PyTorch's message tells.
    return isinstance(error, MemoryError) or is_out_of_memory(error) or "can't allocate memory" in str(error)


def _fail(program: str, message: str, status: int) -> int:
    line = printable(f"{program}: error: {' '.join(message.split())}")
    show_once(lambda: print(line, file=sys.stderr, flush=True))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="flashkat", description="Train, evaluate and inspect Kolmogorov-Arnold Transformers.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and end")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    for name, add_arguments, run, text in (
        ("train", add_training_arguments, _train, "train a model on a folder of images"),
        ("finetune", add_finetune_arguments, _finetune, "choose the flags of train for a folder of images, and run it"),
        ("validate", add_validation_arguments, _validate, "evaluate a model on a folder of images"),
        ("plot", add_plot_arguments, _plot, "draw the functions that a checkpoint's rationals have learned"),
        ("inspect", add_inspect_arguments, _inspect, "measure the learned functions, and write a report of them"),
        ("fit", add_fit_arguments, _fit, "fit a rational to a function or to points, and show its errors"),
        ("export", add_export_arguments, _export, "write a model as ONNX, as a program, or as other code loads it"),
        ("predict", add_predict_arguments, _predict, "name the classes of images"),
        ("flops", add_flops_arguments, _flops, "count operations and parameters of a model, part by part"),
    ):
        command = commands.add_parser(name, help=text, description=as_sentence(text))
        add_arguments(command)
        command.set_defaults(run=run)

    text = "write a built-in data set, unpack ImageNet, check a data set, or divide one"
    data = commands.add_parser("data", help=text, description=as_sentence(text))
    add_data_commands(data, write=_data, check=_check_data, unpack=_unpack_imagenet, split=_split_data)

    text = "show versions, devices and the path that the operator takes on each"
    doctor = commands.add_parser("doctor", help=text, description=as_sentence(text))
    doctor.set_defaults(run=_doctor)
    return parser


class _Version(argparse.Action):
    """Reads the version where it is asked for: a checkout that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from .. import __version__

        print(f"flashkat {__version__}", flush=True)
        parser.exit()


def _note(line: str) -> None:
    """Print a line that is not part of a command's result."""
    print(printable(line), file=sys.stderr, flush=True)


def _say(line: str) -> None:
    """Print a command's result."""
    print(printable(line))


def _train(args: argparse.Namespace) -> None:
    from ..system.distributed import is_primary
    from ..training import train
    from ..training.outputs.summary import results
    from .sections import training_config

    if args.local_rank is not None:
        # Older launchers pass the flag. Newer ones set the variable.
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    result = train(training_config(args))
    if is_primary():
        _say(f"The run is in {result.folder}")
        print(f"--result\n{json.dumps(results(result.history, result.best), indent=4)}")


def _finetune(args: argparse.Namespace) -> None:
    from ..tools.finetune.choices import choose

    is_dry, given = args.dry_run, {name: value for name, value in vars(args).items() if name != "dry_run"}
    parser = Parser(prog="flashkat train")
    add_training_arguments(parser)
    plan = choose({name: value for name, value in given.items() if value is not None})
    words = parser.typed(plan.flags)
    if os.environ.get("RANK", "0") == "0":
        for note in plan.notes:
            _note(note)
        _say(shlex.join(["flashkat", "train", *words]))
        sys.stdout.flush()
    if not is_dry:
        _train(parser.parse_args(words))


def _validate(args: argparse.Namespace) -> None:
    from ..evaluation import validate_all
    from ..evaluation.results import result_text
    from ..system.distributed import is_primary
    from .sections import evaluation_config

    config = evaluation_config(args, args.checkpoint, args.data_dir)
    result = validate_all(config, args.results_file, args.results_format, say=_note)
    if is_primary():
        print(result_text(result))


def _plot(args: argparse.Namespace) -> None:
    from ..tools.animation import animate
    from ..tools.plot import plot
    from .sections import evaluation_config

    config, draw = evaluation_config(args, args.checkpoint, args.data), animate if args.animate else plot
    _say(f"The rationals are drawn in {draw(config, args.output, say=_note)}")


def _inspect(args: argparse.Namespace) -> None:
    from ..tools.inspect.inspect_model import inspect_model
    from .sections import evaluation_config

    config = evaluation_config(args, args.checkpoint, args.data)
    print(inspect_model(config, args.html, args.json, say=_note))
    if args.html is not None:
        _note(f"The report is {args.html}")


def _fit(args: argparse.Namespace) -> None:
    from ..tools.fits.fit_function import fit_function, table

    found = fit_function(
        args.name,
        args.expr,
        args.points,
        m=args.m,
        n=args.n,
        interval=args.interval and tuple(args.interval),
        method=args.method,
        tail_weight=args.tail_weight,
        max_error=args.max_error,
        output=args.output,
        picture=args.plot,
    )
    if args.json:
        print(found.to_json())
    else:
        _say(table(found))
    for path in filter(None, (args.output, args.plot)):
        _note(f"Wrote {path}")


def _export(args: argparse.Namespace) -> None:
    endings = (*PROGRAMS, *WEIGHTS)
    if args.to and args.output.endswith(endings):
        raise InputError(f"--to {args.to} writes a folder, and {args.output} is a file's name: give another name")
    if not args.to and not args.output.endswith(endings):
        raise InputError(f"cannot write {args.output}: end it in {', '.join(endings)}, or give --to hf for a folder")
    is_program = args.output.endswith(PROGRAMS)
    if args.format and (is_program or args.to):
        raise InputError("--format is for files of weights alone: leave it out")
    if args.push_to_hub and not args.to:
        raise InputError("--push-to-hub uploads the folder of --to hf: give that too")
    if args.model_dtype and not is_program:
        raise InputError("--model-dtype is for .onnx and .pt2, as weights keep every bit: leave it out")
    if args.amp:
        raise InputError("--amp is for running a model: leave it out, or give --model-dtype for .onnx and .pt2")
    if args.data_backend:
        raise InputError("--data-backend is for reading images, and export reads none: leave it out")
    if not is_program and not args.to:
        for name in ("class_map", "crop_pct", "input_img_mode", "interpolation", "mean", "std"):
            if getattr(args, name):
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is for .onnx, .pt2 and --to hf, as files of weights lack it: leave it out")
    if args.to:
        _export_folder(args)
    elif is_program:
        _export_program(args)
    else:
        from ..checkpoints.export import export
        from ..tools.export.restored import check_whole
        from .sections import evaluation_config

        check_whole(evaluation_config(args, args.checkpoint, None))
        format = args.format or "kat"
        count = export(args.checkpoint, args.output, format, args.use_ema, say=_note)
        _say(f"Wrote {count} tensors to {args.output}, with the names of {format}")


def _export_folder(args: argparse.Namespace) -> None:
    from ..tools.export.hub_folder import push, write_folder
    from .sections import evaluation_config

    config = evaluation_config(args, args.checkpoint, None)
    folder = write_folder(config, args.output, args.license, args.push_to_hub, say=_note)
    _say(f"Wrote {folder}, for timm.create_model('local-dir:{folder}', pretrained=True)")
    if args.push_to_hub:
        _say(f"Pushed it to {push(folder, args.push_to_hub)}")


def _export_program(args: argparse.Namespace) -> None:
    from ..tools.export.write import export_checkpoint
    from .sections import evaluation_config

    worst, classes = export_checkpoint(evaluation_config(args, args.checkpoint, None), args.output, say=_note)
    named = f"{classes} class names" if classes else "no class names, as the checkpoint has none"
    _say(f"Wrote {args.output}, with {named}")
    _say(f"Largest difference of an output from the model's: {worst:.2g}")


def _predict(args: argparse.Namespace) -> int:
    from ..tools.predict.predict import heading, line_of, predict
    from .sections import evaluation_config

    form = "json" if args.json else "csv" if args.csv else "text"
    predictions = predict(
        evaluation_config(args, args.checkpoint, None),
        args.images,
        sys.stdin or (),
        top=args.top,
        trust=args.trust,
        terminal=sys.stderr if sys.stderr.isatty() else None,
        say=_note,
    )
    skipped = 0
    for number, prediction in enumerate(predictions):
        if number == 0 and heading(form):
            print(heading(form))
        if prediction is None:
            skipped += 1
        else:
            print(line_of(prediction, form), flush=True)
    if skipped:
        _note(f"Images that cannot be read: {skipped}")
    return 1 if skipped else 0


def _flops(args: argparse.Namespace) -> None:
    from ..tools.flops import flops

    print(flops(args.model, args.img_size, args.num_classes, args.model_kwargs, as_json=args.json))


def _data(args: argparse.Namespace) -> None:
    from ..tools.data.digits import write_digits

    counts = write_digits(args.folder)
    _say(f"Wrote {counts['train']} training and {counts['val']} validation images to {args.folder}")


def _check_data(args: argparse.Namespace) -> int:
    from ..tools.data.check_data import check_data

    report, is_whole = check_data(args.folder)
    print(report)
    return 0 if is_whole else 1


def _split_data(args: argparse.Namespace) -> None:
    from ..tools.data.split_data import split_data

    counts = split_data(args.folder, args.output, args.val_fraction, say=_note)
    _say(f"Linked {counts['train']} training and {counts['val']} evaluation images in {args.output}")


def _unpack_imagenet(args: argparse.Namespace) -> None:
    from ..tools.data.imagenet import unpack_imagenet

    counts = unpack_imagenet(args.folder, args.train, args.val, args.devkit)
    _say(f"{args.folder} has {' and '.join(f'{count:,} images in {split}' for split, count in counts.items())}")


def _doctor(args: argparse.Namespace) -> None:
    from ..tools.doctor import report

    print(report())
