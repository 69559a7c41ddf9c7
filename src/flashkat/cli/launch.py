"""Run ``flashkat train`` in N processes of this machine: ``python -m flashkat.cli.launch N FLAGS``.

``dist_train.sh`` calls this. It is torchrun for one node, but without torchrun's error report. One of the processes
reports an error, and the exit status is theirs.
"""

import logging
import signal
import sys
from collections.abc import Sequence

from .parser import Parser
from .train_flags import add_training_arguments

__all__ = ["launch"]

# torchrun's own, and the one that Slurm's users send.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")


def launch(processes: int, flags: Sequence[str]) -> int:
    """Train in several processes, which all end when one fails.

    Flags that cannot be read exit this process with status 2.

    Args:
        processes: number of processes.
        flags: flags of ``flashkat train``.

    Returns:
        The exit status; 128 plus a signal's number if a signal ended the run.
    """
    parser = Parser(prog="flashkat train")
    add_training_arguments(parser)
    # Check here, as each process takes seconds to start.
    parser.parse_args(flags)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from ..system.signals import ignores_hangup

    signals = ",".join(name for name in _SIGNALS if name != "SIGHUP" or not ignores_hangup())
    options = ["--standalone", "--nproc-per-node", str(processes), "--signals-to-handle", signals]
    options += ["-m", "flashkat", "train", *flags]
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        return _status({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _status(codes: dict[int, int]) -> int:
    """Return the exit status of the run.

    Args:
        codes: the exit codes by rank. Negative ones are signals. torchrun sends SIGTERM to the rest after a failure.
    """
    said = [code for code in codes.values() if code > 0]
    if said:
        # Bad input is 2. A process that lost another one exits with 1.
        return max(said)
    rank, code = min(codes.items(), key=lambda item: item[1] == -signal.SIGTERM)
    print(f"flashkat train: error: process {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    return 128 - code


if __name__ == "__main__":
    # Silence torchrun's own log.
    logging.disable()
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
