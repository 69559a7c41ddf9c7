"""Ctrl-C at any moment of a command gives one line, and programs that import the package are left alone."""

import atexit
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import forked

from flashkat.system import interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("flashkat")
LINE = "flashkat: error: interrupted\n"

STOPPED = "flashkat: error: stopped\n"

# Python runs this first. It sends a signal when a module is imported, a folder is listed or a link is made.
HOOK = """
import os, signal, sys

def interrupt(event, arguments):
    if (event, str(arguments[0]) if arguments else "") == (os.environ["EVENT"], os.environ["OF"]):
        os.kill(os.getpid(), int(os.environ.get("NUMBER", signal.SIGINT)))

sys.addaudithook(interrupt)
"""


def started(*command, environment=None, handler=signal.default_int_handler):
    def listen():
        # A shell has its background jobs, such as these tests may be, ignore these.
        signal.signal(signal.SIGINT, handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    )


@pytest.fixture
def interrupted_at(tmp_path):
    """A function that runs a command which gets SIGINT at an event, and returns its status and errors."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(event, of, *command, **environment):
        process = started(*command, environment={"PYTHONPATH": path, "EVENT": event, "OF": str(of), **environment})
        _, err = process.communicate(timeout=300)
        return process.returncode, err

    return run


@pytest.mark.parametrize("module", ["torch", "torch._C", "timm", "flashkat.cli.main", "flashkat.training.loop"])
def test_one_line_while_modules_are_imported(interrupted_at, module):
    assert interrupted_at("import", module, sys.executable, "-m", "flashkat", "train", "d") == (130, LINE)


@pytest.mark.parametrize(
    ("script", "argument"),
    [(COMMAND, "doctor"), (ROOT / "train.py", "data"), (ROOT / "validate.py", "data")],
    ids=lambda word: getattr(word, "name", None),
)
def test_one_line_of_every_script(interrupted_at, script, argument):
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    assert interrupted_at("import", "torch", sys.executable, script, argument) == (130, LINE)


def test_dist_train_in_its_first_second(interrupted_at):
    assert interrupted_at("import", "torch", sys.executable, "-m", "flashkat.cli.launch", 2, "data") == (130, LINE)


def test_one_of_several_processes_reports(interrupted_at):
    assert interrupted_at("import", "torch", sys.executable, "-m", "flashkat", "doctor", RANK="1") == (130, "")


def test_a_command_at_work_cleans_up(interrupted_at, images):
    """It says the same after its name."""
    command = [sys.executable, "-m", "flashkat", "data", "check", images]
    assert interrupted_at("os.scandir", images / "train", *command) == (130, "flashkat data: error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_cleans_up(interrupted_at, images, tmp_path, number):
    command = [sys.executable, "-m", "flashkat", "data", "split", images / "train", tmp_path / "new"]
    link = os.path.relpath(sorted((images / "train").glob("*/*"))[0], tmp_path / "new" / "train" / "class")
    status, err = interrupted_at("os.symlink", link, *command, NUMBER=str(int(number)))
    assert (status, err) == (128 + number, "flashkat data: error: stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sitecustomize.py"]


def test_the_digits_are_written_after_the_imports(interrupted_at, tmp_path):
    command = [sys.executable, "-m", "flashkat", "data", "digits", tmp_path / "digits"]
    status, err = interrupted_at("import", "sklearn.datasets._base", *command, NUMBER=str(int(signal.SIGTERM)))
    assert (status, err) == (-signal.SIGTERM, STOPPED)
    assert [path.name for path in tmp_path.iterdir()] == ["sitecustomize.py"]


# Starts a command, says its process, and waits to be killed.
LAUNCHER = """
import signal, subprocess, sys
print(subprocess.Popen(sys.argv[1:]).pid, flush=True)
signal.pause()
"""


def test_a_process_ends_with_torchrun_while_it_still_imports(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.write(2, b'importing')\nsignal.pause()\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path, "TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1"}
    command = [sys.executable, "-m", "flashkat", "doctor"]
    launcher = started(sys.executable, "-c", LAUNCHER, *command, environment=environment)
    process = int(launcher.stdout.readline())
    try:
        assert launcher.stderr.read(9) == "importing"
        launcher.kill()
        # Its end closes the pipe. Nothing else ends it.
        assert launcher.communicate(timeout=60) == ("", "")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        launcher.communicate()


# Without torch, whose import takes seconds: a stand-in reports how SIGINT is handled when it is imported.
STAND_IN = """
import signal
print(repr(signal.getsignal(signal.SIGINT)), flush=True)
raise SystemExit
"""


@pytest.mark.parametrize(
    ("words", "handler", "found"),
    [
        (["-c", "import flashkat"], signal.default_int_handler, "default_int_handler"),
        (["-m", "flashkat", "doctor"], signal.default_int_handler, "_Handler"),
        (["-m", "flashkat", "doctor"], signal.SIG_IGN, "SIG_IGN"),
    ],
)
def test_who_handles_the_signal(tmp_path, words, handler, found):
    (tmp_path / "torch.py").write_text(STAND_IN)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    process = started(sys.executable, *words, environment={"PYTHONPATH": path}, handler=handler)
    out, err = process.communicate(timeout=60)
    assert found in out, err


@pytest.mark.parametrize(
    ("program", "words", "is_command"),
    [
        ("/bin/flashkat", ["python", "-u", "/bin/flashkat", "doctor"], True),
        ("/bin/flashkat", ["python", "-c", "from multiprocessing.spawn import spawn_main"], False),
        ("/home/me/train.py", ["python", "/home/me/train.py"], False),
        (str(ROOT / "train.py"), ["python", str(ROOT / "train.py")], True),
        ("-m", ["python", "-m", "flashkat.cli.launch"], True),
        ("-m", ["python", "-m", "mine.flashkat"], False),
        ("-m", ["python", "-mmine"], False),
        ("", ["python"], False),
    ],
)
def test_which_programs_are_commands(monkeypatch, program, words, is_command):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert interrupts._is_command() == is_command


def last_words(status):
    atexit.register(print, "bye")
    print("done")
    interrupts.leave(status)


def test_the_end_of_one_of_several_processes(tmp_path):
    """What it has said arrives, and its handlers run."""
    done = forked(tmp_path, last_words, (3,), [{"WORLD_SIZE": 2}])
    assert (done.status, done.stdout, done.stderr) == ([3], "done\nbye\n", "")


def test_the_end_of_one_process():
    with pytest.raises(SystemExit) as end:
        interrupts.leave(3)
    assert end.value.code == 3


def test_a_block_raises_once_and_forks_nothing():
    handler, before = interrupts._Handler(), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert not handler.raises
        handler._process = 0  # as a fork sees it
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["doctor"], ["data", "digits", "digits"]], ids=" ".join)
def test_no_traceback_at_any_moment(tmp_path, monkeypatch, command):
    """Every 50 ms. What Python does before our handler is set is its own."""
    for step in range(120):
        (tmp_path / str(step)).mkdir()  # a run that ends first leaves its folder
        monkeypatch.chdir(tmp_path / str(step))
        process = started(sys.executable, "-m", "flashkat", *command)
        time.sleep(0.05 * step)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        if "Traceback" in err:
            files = {Path(name).name for name in re.findall(r'File "(.*?flashkat.*?)"', err)}
            assert files <= {"__init__.py", "interrupts.py"}, f"after {0.05 * step:.2f} s"
            continue
        assert process.returncode in (0, 130, -signal.SIGINT)
        assert err.count("\n") <= 1


@pytest.mark.parametrize("stops", [False, True])
def test_processes_that_load_images_end_also_when_they_are_stopped(stops):
    """Others live on. The handler that a loader sets for their ends is not called."""
    context, ended = multiprocessing.get_context("spawn"), []
    loading, other = (context.Process(target=time.sleep, args=(3600,), daemon=daemon) for daemon in (True, False))
    before = signal.signal(signal.SIGCHLD, lambda *_: ended.append(1))
    try:
        loading.start()
        other.start()
        if stops:
            os.kill(loading.pid, signal.SIGSTOP)
            os.waitpid(loading.pid, os.WUNTRACED)
        ended.clear()
        interrupts.end_children()
        assert loading.exitcode == -signal.SIGKILL
        assert other.is_alive()
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
        assert ended == []
    finally:
        for process in (loading, other):
            process.kill()
            process.join()
        signal.signal(signal.SIGCHLD, before)
