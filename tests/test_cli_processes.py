"""The command line as real processes: Ctrl-C at any time, and streams that take nothing."""

import random
import signal
import subprocess
import sys
import time

import pytest

import isospike

START = (  # The byte says that two small modules are loaded, which takes milliseconds.
    "import os; from isospike import interrupts; interrupts.answer(); os.write(1, b'.'); "
    "from isospike.__main__ import main; main()"
)


def start(*arguments, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, "-c", START, *map(str, arguments)], **streams)


def interrupted(arguments, after, again=False):
    """Exit code, stderr and output of a process that gets Ctrl-C so many seconds after it began."""
    process = start(*arguments)
    process.stdout.read(1)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    if again:
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.decode().splitlines()


def check_interrupted(seeds, tmp_path, longest):
    for seed in seeds:
        chance = random.Random(seed)
        after = chance.uniform(0, longest)
        out = tmp_path / str(seed)
        status, lines = interrupted(["order", "sachs", "--out", out], after, again=seed % 2 == 0)
        assert status == 130, (seed, after, lines)
        assert [line for line in lines if "interrupted" in line] == lines[-1:], (seed, after)
        assert lines[-1] == "interrupted: nothing was written."
        assert "Traceback" not in "".join(lines)
        assert not out.exists()


def test_ctrl_c_while_it_starts_is_one_line(tmp_path):
    check_interrupted(range(4), tmp_path, longest=0.5)


@pytest.mark.slow
def test_ctrl_c_at_any_time_is_one_line(tmp_path):
    check_interrupted(range(100, 140), tmp_path, longest=2.0)


CODE_THAT_KEEPS_THE_EXCEPTION = """
import os, time
from isospike import interrupts
interrupts.GRACE_S = 0.2
interrupts.answer()
interrupts.begin_work("a file is kept.")
while True:
    try:
        os.write(1, b".")
        time.sleep(30)
    except KeyboardInterrupt:
        pass
"""


def test_ctrl_c_ends_code_that_keeps_the_exception_to_itself():
    process = subprocess.Popen(
        [sys.executable, "-c", CODE_THAT_KEEPS_THE_EXCEPTION],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"interrupted: a file is kept.\n")


# ------------------------------------------------------------------------ streams


LIST = pytest.param("reproduce", marks=pytest.mark.slow)  # of all studies: it imports each


@pytest.mark.parametrize("argument", ["--help", "--version", LIST])
def test_a_full_stdout_is_named(argument):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "isospike", argument],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    (line,) = process.stderr.splitlines()
    assert process.returncode == 3
    assert "needs a stdout that takes its result, got No space left on device." in line


@pytest.mark.parametrize("argument", ["--version", LIST])
def test_a_closed_stdout_is_named_and_a_closed_stderr_stops_nothing(argument):
    script = 'exec "$0" -m isospike "$@"'
    arguments = [sys.executable, argument]
    shell = {"stderr": subprocess.PIPE, "check": False, "timeout": 60, "text": True}
    closed = subprocess.run(["sh", "-c", f"{script} >&-", *arguments], **shell)
    assert closed.returncode == 3
    assert "got a closed stdout." in closed.stderr
    mute = subprocess.run(
        ["sh", "-c", f"{script} 2>&-", *arguments], stdout=subprocess.PIPE, **shell
    )
    assert mute.returncode == 0
    assert ("lemma-1" if argument == "reproduce" else isospike.__version__) in mute.stdout


@pytest.mark.parametrize("argument", ["--help", LIST])
def test_a_reader_that_has_read_enough_is_no_error(argument):
    line = '{ "$0" -m isospike "$1"; echo "exit $?" >&2; } | head -c 1'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, argument],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr in ("exit 3\n", "exit 0\n")  # a short list may fit into the pipe
