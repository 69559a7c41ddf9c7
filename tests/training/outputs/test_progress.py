import io
import os
import re
import select
import struct
import subprocess
import sys
import time

import pytest
import tiny

from flashkat.evaluation.metrics import Metrics
from flashkat.training.outputs.progress import open_progress, per_second

METRICS = Metrics(loss=1.23456, top1=43.219, top5=90.0)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_plain_lines(capsys):
    with open_progress(epochs=20, batches=300) as progress:
        progress.say("hello [bold]you[/bold]")
        progress.batch(1, 9, METRICS, rate=1234.5)
        progress.batch(1, 10, None, rate=1234.5)
    hello, line = capsys.readouterr().out.splitlines()
    assert hello == "hello [bold]you[/bold]"
    assert re.fullmatch(
        r"Train: 2/20 \[  10/300\]  loss 1\.2346  top-1 43\.22%  123[45] images/s  \d+:\d\d:\d\d left", line
    )


@pytest.mark.parametrize(
    ("elapsed", "epoch", "index", "left"),
    [(10.0, 0, 9, "0:01:30"), (10.0, 0, 99, "0:00:00"), (75.0, 0, 1, "1:01:15"), (3600.0, 0, 0, "99:00:00")],
)
def test_time_left(capsys, monkeypatch, elapsed, epoch, index, left):
    now = [500.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    # A hundred batches in all.
    with open_progress(epochs=10, batches=10) as progress:
        now[0] += elapsed
        progress.batch(index // 10, index % 10, METRICS, rate=1.0)
    assert capsys.readouterr().out.endswith(f" {left} left\n")


def test_plain_output_is_written_at_once(monkeypatch):
    class Stream:
        written, flushed = "", ""

        def write(self, text):
            self.written += text

        def flush(self):
            self.flushed = self.written

        def isatty(self):
            return False

    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    with open_progress(1, 1) as progress:
        progress.say("now")
        assert stream.flushed == "now\n"
        progress.batch(0, 0, METRICS, 1.0)
        assert "loss" in stream.flushed


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Called in a test, gives it a terminal for its standard output."""

    def replace():
        for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return replace


@pytest.mark.parametrize(("rate", "text"), [(0.42, "0.4 images/s"), (9.9, "9.9 images/s"), (3270.4, "3270 images/s")])
def test_few_images_per_second_have_a_decimal(rate, text):
    assert per_second(rate) == text


def test_live_bar(terminal):
    stream = terminal()
    with open_progress(epochs=2, batches=10) as progress:
        progress.batch(0, 0, METRICS, rate=100.0)
        progress.batch(0, 4, None, rate=100.0)
        progress.say("Epoch line")
        progress.batch(1, 4, Metrics(0.5, 75.0, 99.0), rate=321.0)
        # One without numbers keeps those before.
        progress.batch(1, 5, None, rate=400.0)
    out = stream.getvalue()
    assert "\x1b[2K" in out
    assert "\r" in out
    text = ESCAPE.sub("", out)
    assert "Epoch line\n" in text
    # What is there at the end.
    last = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]
    assert last.startswith("epoch 2/2")
    for words in ("80%", "loss 0.5000", "top-1 75.00%", "321 images/s", "left"):
        assert words in last


@pytest.mark.parametrize(
    "line",
    [
        "[red]brackets[/red] and \\[more] 1 2.5 'a'",
        "x" * 300,
        "output/:key:/run",
    ],
)
def test_live_lines_are_left_as_they_are(terminal, line):
    stream = terminal()
    with open_progress(1, 1) as progress:
        progress.say(line)
    assert "\x1b[2K" in stream.getvalue()
    assert line in ESCAPE.sub("", stream.getvalue())


def test_live_bar_ends_with_an_error(terminal):
    stream = terminal()

    def interrupted():
        with open_progress(1, 2) as progress:
            progress.batch(0, 0, METRICS, 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # The cursor is hidden, and there again.
    assert 0 <= stream.getvalue().rindex("\x1b[?25l") < stream.getvalue().rindex("\x1b[?25h")


@pytest.mark.skipif(os.name != "posix", reason="opens a pseudo-terminal")
def test_on_a_real_terminal(images, tmp_path):
    import fcntl
    import pty
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    code = "import sys; from flashkat.cli.main import main; sys.exit(main())"
    argv = [
        "train",
        images,
        *tiny.FLAGS,
        "-j",
        "0",
        "-b",
        "4",
        "--epochs",
        "2",
        "--log-interval",
        "1",
        "--output",
        tmp_path,
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        stdout=child,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
    )
    os.close(child)
    out, end = b"", time.monotonic() + 120
    try:
        while time.monotonic() < end:
            if not select.select([parent], [], [], 1)[0]:
                continue
            try:
                more = os.read(parent, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not more:
                break
            out += more
        assert process.wait(30) == 0, process.stderr.read()
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.stderr.close()
        os.close(parent)
    assert b"\x1b[2K" in out
    assert b"\r" in out
    text = ESCAPE.sub("", out.decode())
    bars = [line for line in re.split(r"[\r\n]+", text) if "━" in line]
    pattern = r"epoch 2/2 ━+ *100% loss \d+\.\d{4}  top-1 \d+\.\d\d%  [\d.]+ images/s \d+:\d\d:\d\d left"
    assert re.fullmatch(pattern, bars[-1].strip())
    # A quick batch may begin and end between two redraws.
    assert any(bar.strip().startswith("epoch 1/2 ") for bar in bars)
    assert len([line for line in text.splitlines() if re.search(r"Epoch \d/2  train loss", line)]) == 2


def test_a_log_on_a_full_disk_is_no_end(monkeypatch):
    class Full(io.StringIO):
        error: OSError = OSError(28, "No space left on device")

        def flush(self):
            raise self.error

    monkeypatch.setattr("sys.stdout", Full())
    progress = open_progress(1, 1)
    progress.say("epoch 1")
    Full.error = BrokenPipeError()
    with pytest.raises(BrokenPipeError):
        progress.say("epoch 2")
