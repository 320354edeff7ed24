"""``isospike port``: port a text model to spikes and measure the port."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from isospike import progress
from isospike.cli.app import command
from isospike.cli.emit import NOT_REACHED, Outcome
from isospike.errors import InputError, RangeError
from isospike.hf.load import MAX_SENTENCES, Source, TextModel, find_model, find_port
from isospike.report.files import check_destination
from isospike.workers import reach_workers

DEFAULT_STEPS = 8
STATUS = {"spikes": 0, "float": 1, "refused": 2}
HEADLINE = (
    "model code steps execution precision functions max_error reached error error_predicted "
    "error_fast cosine cosine_pooled agreement spikes synaptic_ops"
).split()


@command(
    "Port",
    examples=("isospike check minilm", "isospike check out/minilm --target loihi2"),
    exits=(
        "0    everything can run on spikes",
        "1    something stays in float",
        "2    the model cannot be ported, or a mistake",
    ),
)
def check(model: str, *, target: str | None = None, out: Path | None = None) -> Outcome:
    """Say which parts of a model would run on spikes, module by module.

    Nothing is calibrated. Matrix products run on spikes in every port; softmax, normalisation,
    activations and gates only where it is made with --functions spiking.

    Args:
        target (CHIP): Say instead which parts of a port fit a chip, by its published limits:
            loihi2, spinnaker2, truenorth, speck or xylo. MODEL is then a folder that isospike port
            wrote.
        out (DIR): Where to write a page, JSON and tables.
    """
    if out is not None:
        check_destination(out)
    if target is not None:
        return Outcome.of(_on_chip(model, target), out)
    source = find_model(model)
    from isospike.hf.load import load
    from isospike.porting.check import check as check_model

    text_model = load(source)
    report = check_model(text_model.model, name=source.name)
    return replace(Outcome.of(report, out), status=STATUS[report.outcome])


def _on_chip(folder: str, target: str) -> Any:
    """What of a port fits on a chip; an unknown one is refused before the port is loaded."""
    from isospike.deploy.chips import check_chip, find_chip
    from isospike.porting.files import load

    find_chip(target)
    find_port(folder)
    return check_chip(load(folder), target)


@command(
    "Port",
    examples=(
        "isospike port minilm",
        "isospike port ./my-model --text my.txt --max-error 0.02 --out out/mine",
        "isospike port minilm --max-error 0.05 --per-channel",
    ),
    exits=(
        "0    done",
        "1    the error asked for was not reached; the closest port is saved",
        "2    a mistake or a full disk; one line says what, nothing is written",
        "130  interrupted; nothing is written",
    ),
    words={"error": "--max-error"},
    smaller="--sentences, or a smaller model",
)
def port(
    model: str,
    *,
    text: Path | None = None,
    code: str = "signed-digit",
    steps: int | None = None,
    max_error: float | None = None,
    per_channel: bool = False,
    execution: str = "collapsed",
    precision: str = "exact",
    functions: str = "float",
    ranges: str = "dynamic",
    weight_bits: int = 16,
    keep: str | None = None,
    sentences: int = MAX_SENTENCES,
    words: str | None = None,
    seed: int = 0,
    curve: bool = True,
    workers: str | None = None,
    offload: Path | None = None,
    device: str = "cpu",
    out: Path | None = None,
) -> Outcome:
    """Port a pretrained model to spikes; measure and save the port.

    Writes a report, the port and its tokenizer: all that isospike embed and generate need. Four
    fifths of the texts calibrate the port; its error is measured on the last fifth, and on texts of
    other kinds beside it. The original model is not changed.

    Args:
        text: UTF-8 text like what the model will read. [default: texts of many kinds, included]
        code (CODE): How spikes encode a number: signed-digit, half-octave, phase, rate, bernoulli
            or latency.
        steps: Number of time steps in which a number is encoded. More steps give a smaller error
            and cost more spikes. [default: 8, without --max-error]
        max_error (E): In place of --steps: use the fewest steps whose error is at most this, such
            as 0.05 for 5 %. The error is the root-mean-square change of the model's output,
            relative to the output, on texts held back from calibration.
        per_channel: With --max-error: reach the error with the fewest spikes, by an own number of
            steps for the input of each matrix product and an own resolution for each channel.
        precision (MODE): Arithmetic of --execution collapsed: ``exact``, or ``fast``, products in
            bfloat16; the report gives the error that this adds.
        functions (MODE): How softmax, normalisation, activations and gates are computed:
            ``float``, as in the model, or ``spiking``, by neurons that add, compare and reset.
        ranges (MODE): How large the encoded numbers may be: ``dynamic``, scaled to each token as
            it is read; or ``static``, fixed in calibration, for hardware that cannot rescale.
        weight_bits (BITS): Bits of the whole numbers that weights are rounded to: 16, 8 or 4.
        keep (NAMES): Modules whose weights keep 16 bits, separated by commas, with wildcards:
            ``lm_head,*embed*``.
        words (N-M): Fewest and most words of a passage of --text, such as 1-12 for queries or
            8-400 for documents; longer paragraphs are cut, shorter ones left out. [default: 8-40]
        seed: Seed of the random spikes of --code bernoulli.
        curve: Also plot error against steps for every code, which takes most of the time.
        workers (N): Number of processes that compute the curve; or ``ray`` or ``ray:ADDRESS``, a
            Ray cluster, with isospike[ray]. [default: this one, on all cores]
        offload (DIR): For a model larger than memory: port it block by block, and keep the other
            blocks in this folder, 4 bytes for each weight. No curve is plotted.
        out (DIR): Folder to write to. An earlier port in it is replaced; a folder that holds
            anything else is refused. [default: out/<name of the model>]
    """
    _check(steps, max_error, per_channel, sentences, offload)
    if workers is not None:
        reach_workers("port", workers)
    _check_device(device, offload)
    source = find_model(model)
    folder = out or Path("out") / source.label
    check_destination(folder)
    calibration, evaluation = _texts(text, sentences, words)
    mode: dict[str, Any] = {"execution": execution, "precision": precision, "functions": functions}
    wanted = _steps(code, steps, max_error, per_channel, mode, ranges)
    import torch

    from isospike.hf.load import load
    from isospike.porting.port import port as port_model
    from isospike.porting.skeleton import check_builds
    from isospike.porting.synapses import Synapses

    kept = tuple(keep.split(",")) if keep else ()
    Synapses(weight_bits, kept).check()
    text_model = load(source, mapped=offload is not None)
    check_builds(text_model.model)
    text_model = _placed(text_model, device, offload)
    batches, kinds = _inputs(text_model, calibration, evaluation, sentences, device)
    ported = port_model(
        text_model.model, batches, code=code, steps=wanted, evaluation=kinds,
        **mode, ranges=ranges, weight_bits=weight_bits, keep=kept,
        generator=torch.Generator().manual_seed(seed),
    ).labelled(text_model.tokenizer)  # fmt: skip
    save = partial(_save, source=text_model, folder=folder)
    save(ported, phase=f"save {folder}")
    then = partial(_add_curve, ported, workers, folder, save) if curve and offload is None else None
    return _outcome(ported.report, folder, then)


def _add_curve(ported: Any, workers: str | None, folder: Path, save: Any) -> None:
    """Save the port again with its curve, whose points are kept until then."""
    kept = folder.parent / f".{folder.name}-curve"
    save(ported.sweep(workers=workers, folder=kept), phase="save the curve")
    shutil.rmtree(kept, ignore_errors=True)


def _check_device(device: str, offload: Path | None) -> None:
    """Raise unless there is such a device."""
    if device == "cpu":
        return
    import torch

    if device.partition(":")[0] != "cuda" or offload is not None:
        got = repr(device) + (" with --offload" if offload is not None else "")
        raise InputError(
            f"port needs --device cpu, or cuda without --offload, got {got}. Choose one."
        )
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"port needs a CUDA device that torch sees for --device {device}, got none. Use "
            "--device cpu, or install a torch with CUDA on a machine with such a GPU."
        ) from None


def _placed(text_model: TextModel, device: str, folder: Path | None) -> TextModel:
    """The model where its weights shall be."""
    if folder is not None:
        from isospike.porting.offload import offload

        return replace(text_model, model=offload(text_model.model, folder))
    return replace(text_model, model=text_model.model.to(device))


def _check(
    steps: int | None, max_error: float | None, per_channel: bool, sentences: int,
    offload: Path | None,
) -> None:  # fmt: skip
    if steps is not None and max_error is not None:
        raise InputError(
            "port needs --steps or --max-error, got both. Give the steps, or the error to find "
            "them for."
        )
    if per_channel and max_error is None:
        raise InputError(
            "port needs --max-error to allocate steps for, got --per-channel alone. Add one, such "
            "as 0.05."
        )
    if per_channel and offload is not None:
        raise InputError(
            "port needs --per-channel or --offload, got both: channels are measured by gradients, "
            "in memory. Leave one out."
        )
    check_sentences(sentences, 2)


def _steps(
    code: str, steps: int | None, max_error: float | None, per_channel: bool,
    mode: dict[str, Any], ranges: str,
) -> Any:  # fmt: skip
    """The steps, or the error to reach; refuses what the library would refuse after loading."""
    from isospike import codes
    from isospike.porting.plan import Target, check_ranges, check_steps
    from isospike.porting.run import Mode

    wanted = DEFAULT_STEPS if steps is None else steps
    Mode(**mode).check("port", codes.code(code, wanted).levels)
    check_ranges(ranges)
    if max_error is None:
        return wanted
    target = Target(max_error, per_channel)
    check_steps(code, target)
    return target


def check_sentences(sentences: int, least: int) -> None:
    """Raise unless the number of sentences is in its range."""
    if not least <= sentences <= MAX_SENTENCES:
        raise RangeError(
            f"port needs sentences from {least} to {MAX_SENTENCES}, got {sentences}. Choose a "
            "number in that range."
        )


def _texts(text: Path | None, count: int, words: str | None = None) -> tuple[list[str], list[str]]:
    """Texts to calibrate on, and every fifth one to measure on."""
    from isospike.data import calibration_texts, passages, read_text

    if text is None:
        if words is not None:
            raise InputError(f"port needs --text for --words, got {words!r} alone. Give a text.")
        found = calibration_texts()
    else:
        found = passages(read_text(text), count, *_bounds(words))
    if len(found) < 2:
        raise InputError(
            f"port needs at least 2 passages of text, one to calibrate on and one to measure on, "
            f"got {len(found)} in {str(text)!r}. Give a longer text."
        )
    held_out = found[4::5] or found[-1:]
    return [passage for passage in found if passage not in set(held_out)], held_out


def _bounds(words: str | None) -> tuple[int, ...]:
    """Fewest and most words of a passage; none for the library's own."""
    if words is None:
        return ()
    low, _, high = words.partition("-")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise InputError(
            f"port needs --words as the fewest and the most, such as 8-40, got {words!r}. Write "
            "two whole numbers, the smaller one first."
        )
    return int(low), int(high)


def _inputs(
    source: TextModel, calibration: Sequence[str], held_out: Sequence[str], sentences: int,
    device: str,
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:  # fmt: skip
    """Batches to calibrate on, and those of each kind to measure on."""
    from isospike.data import foreign_texts
    from isospike.hf.groups import TOKENS, group_by_length

    most = max(1024, TOKENS * sentences // MAX_SENTENCES)

    def groups(texts: Sequence[str], tokens: int) -> list[dict[str, Any]]:
        found = group_by_length(source, texts, tokens)
        return [{k: v.to(device) for k, v in batch.items()} for batch in found]

    kinds = {"held out": groups(held_out, most // 4)}
    with suppress(InputError):  # a tokenizer that knows no word of them
        kinds["foreign"] = groups(foreign_texts(), most // 4)
    return groups(calibration, most), kinds


def _save(ported: Any, source: TextModel, folder: Path, phase: str) -> None:
    progress.update(phase, 0, 1)
    ported.save(folder, source.tokenizer, source.pooling)
    progress.update(phase, 1, 1)


def _outcome(report: Any, folder: Path, then: Callable[[], None] | None) -> Outcome:
    page = folder / "report.html"
    paths = {"out": folder, "report_html": page, "report_json": folder / "report.json"}
    data = {name: getattr(report, name) for name in HEADLINE}
    data.update({name: str(path.resolve()) for name, path in paths.items()})
    missed = report.max_error is not None and not report.reached
    problem = (
        "not reached",
        f"the error is {report.error:.3g}, {report.error / report.max_error:.2f} times the "
        f"{report.max_error:.3g} asked for, at {report.steps} steps of {report.code}. "
        "This port is saved; try another code.",
    ) if missed else None  # fmt: skip
    return Outcome(
        data=data,
        text=report.summary(),
        saved=page,
        status=NOT_REACHED if missed else 0,
        problem=problem,
        then=then,
    )


@command(
    "Port",
    examples=("isospike compare out/t4 out/t8", "isospike compare minilm@4 minilm@8 --out out/4-8"),
    smaller="--sentences",
)
def compare(
    a: str,
    b: str,
    *,
    text: Path | None = None,
    sentences: int = MAX_SENTENCES,
    out: Path | None = None,
) -> Outcome:
    """Compare two ports: error, spikes, the worst sites and cost.

    A site is the input of a matrix product. Each port is a folder that isospike port wrote, or
    MODEL@STEPS, such as minilm@8: the model is then ported with that many steps, for the comparison
    alone.

    Args:
        text: UTF-8 text like what the model will read. [default: texts of many kinds, included]
        a (A): A folder that isospike port wrote, or MODEL@STEPS.
        b (B): The port to compare it with, given in the same way.
        out (DIR): Where to write a page, JSON and tables.
    """
    check_sentences(sentences, 2)
    if out is not None:
        check_destination(out, a, b)
    sides = [_side(place) for place in (a, b)]
    passages = None if all(source is None for source, _ in sides) else _texts(text, sentences)
    from isospike.hf.load import load
    from isospike.porting.compare import compare as compare_ports

    loaded: dict[Source, TextModel] = {}
    reports: list[Any] = [a, b]
    for i, (source, steps) in enumerate(sides):
        if source is not None and passages is not None:
            text_model = loaded.get(source) or load(source)
            loaded[source] = text_model
            reports[i] = _report(text_model, steps, *passages)
    return Outcome.of(compare_ports(*reports), out)


def _side(place: str) -> tuple[Source | None, int]:
    """The model and its steps of MODEL@STEPS; no model for a folder."""
    name, at, steps = place.rpartition("@")
    if Path(place).exists() or not at:
        find_port(place)
        return None, 0
    if not steps.isdecimal():
        raise InputError(f"compare needs MODEL@STEPS, got {place!r}. Name it like minilm@8.")
    from isospike import codes

    codes.code("signed-digit", int(steps))
    return find_model(name), int(steps)


def _report(
    text_model: TextModel, steps: int, calibration: list[str], evaluation: list[str]
) -> Any:
    from isospike.porting.port import port as port_model

    return port_model(
        text_model.model,
        text_model.batches(calibration),
        steps=steps,
        evaluation=text_model.batches(evaluation),
    ).report
