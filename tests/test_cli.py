"""The command line: help, options, and one line for everything that can go wrong."""

import errno
import inspect
import subprocess
import sys
import threading

import pytest
from folders import (
    call,
    quiet_transformers,  # noqa: F401 - a fixture
)

import isospike
import isospike.hf.load
from isospike.cli import app, emit
from isospike.cli import port as cli
from isospike.cli.options import COMMON
from isospike.errors import InputError

# ------------------------------------------------------------------------- help


def test_help_loads_nothing_heavy():
    heavy = ["torch", "transformers", "plotly", "numpy", "isospike.report.page"]
    script = (
        "import sys; from isospike.cli import main; sys.argv = ['isospike', 'port', '--help']\n"
        f"try: main()\nexcept SystemExit: print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_help_of_port_says_what_a_user_needs():
    done = call("port", "--help")
    assert done.exit_code == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    for needed in (
        "Port a pretrained model to spikes",
        "[default: signed-digit]",
        "8, without --max-error",
        "out/<name of the model>",
        "isospike[demo]",
        "130 interrupted",
        "isospike port minilm",
    ):
        assert needed in words


@pytest.mark.parametrize("command", ["embed", "generate"])
def test_help_of_the_other_commands_has_an_example(command):
    done = call(command, "--help")
    assert done.exit_code == 0
    assert f"isospike {command} out/" in done.stdout


def test_every_choice_that_a_shell_completes_is_in_the_help():
    found = 0
    for command in app.registered_commands:
        for parameter in inspect.signature(command.callback).parameters.values():
            (info,) = parameter.annotation.__metadata__
            if getattr(info, "autocompletion", None):
                names = info.autocompletion("")
                assert names
                assert [name for name in names if name not in info.help] == []
                assert parameter.default in (*names, None)
                found += 1
    assert found >= 10


def test_defaults_are_those_of_the_library():
    ours = inspect.signature(cli.port).parameters
    theirs = inspect.signature(isospike.port).parameters
    for name in ("code", "execution", "precision"):
        assert ours[name].default == theirs[name].default


def test_every_command_has_the_common_options():
    for command in app.registered_commands:
        assert set(COMMON) <= set(inspect.signature(command.callback).parameters)


def test_version_is_that_of_the_package():
    from importlib.metadata import version

    done = call("--version")
    assert (done.exit_code, done.stdout) == (0, f"isospike {version('isospike')}\n")


@pytest.mark.parametrize("arguments", [["port"], ["prot"], ["port", "x", "--steps", "many"]])
def test_wrong_usage_exits_with_2(arguments):
    assert call(*arguments).exit_code == 2


WORDS_OF_EMBED = emit.Words(name="embed", options={"steps": "--steps", "code": "--code"})


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("port needs a tokenizer, got none. Save one.", "embed needs a tokenizer, got none."),
        ("load_port needs steps in [1, 32], got 0.", "embed needs --steps in [1, 32], got 0."),
        ("A.fit needs a code, got none.", "embed needs --code, got none."),
        ("code needs a table, got none.", "embed needs a table, got none."),
        ("code needs one of a, b, got 'c'.", "embed --code needs one of a, b, got 'c'."),
        ("the file is odd.", "embed needs another input, got an error: the file is odd."),
    ],
)
def test_an_error_begins_with_the_command_whatever_function_raised_it(message, line):
    assert emit.explain(InputError(message), WORDS_OF_EMBED).startswith(line)


def test_an_error_of_the_system_says_what_to_do():
    error = RuntimeError("first line " + "x" * 300 + "\nsecond")
    assert "second" not in emit.explain(error, WORDS_OF_EMBED)
    assert emit.explain(
        PermissionError(errno.EACCES, "Permission denied", "/x"), WORDS_OF_EMBED
    ) == ("embed needs access to /x, got Permission denied. Check the path.")
    assert emit.explain(MemoryError(), emit.Words(name="order", smaller="table")) == (
        "order needs more memory than there is, got none. Use a smaller table."
    )


@pytest.mark.parametrize(
    ("quiet", "first", "after", "said"),
    [(False, True, 0.01, True), (True, True, 0.01, False), (False, False, 0.01, False),
     (False, True, 60.0, False)],
)  # fmt: skip
def test_a_long_first_use_says_that_it_compiles(capsys, quiet, first, after, said):
    token = emit._QUIET.set(quiet)
    with emit.compiling(first, after):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer) and thread.interval == 0.01:
                thread.join()
    emit._QUIET.reset(token)
    assert ("once on this machine" in capsys.readouterr().err) == said
