"""Port one model of the zoo and check what a port promises."""

import re
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import isospike
from benchmarks.zoo.registry import Entry, draw, make
from isospike.errors import IsospikeError, UnsupportedError
from isospike.hf.batches import token_masks
from isospike.porting.discover import Discovery
from isospike.porting.fidelity import in_float32, same_draws
from isospike.porting.port import Port
from isospike.porting.run import run_of

STEPS, CALIBRATION, HELD_OUT, ROWS = 8, 24, 8, 3
FLOAT = 1e-4  # largest relative difference of the float phase
AS_EXACT = 1.5  # times the error without a cache
NEW_TOKENS = 6
MARK = re.compile(r"(image|video|audio|vision).*_token_(id|index)$")  # in a configuration

WORKS, PARTLY, REFUSED, CRASH, SILENT, TIMEOUT, UNBUILT = (
    "works", "partly", "refused", "crash", "silent", "timeout", "unbuilt",
)  # fmt: skip
OUTCOMES = {
    WORKS: "the port does all that is checked",
    PARTLY: "it is ported, and what it cannot do it says",
    REFUSED: "an error of isospike says why not",
    SILENT: "it is ported, and something differs without a word",
    CRASH: "an error that is not isospike's",
    TIMEOUT: "not finished in time",
    UNBUILT: "the float model could not be made or run",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        name: Of the model.
        kind: Of the model.
        family: Its architecture, as its configuration calls it.
        outcome: One of :data:`OUTCOMES`.
        stage: What was being done when it ended, or the checks that failed.
        message: Of the error.
        place: Where a crash was raised.
        error: Relative error at eight steps, if it was ported.
        seconds: It took.
    """

    name: str
    kind: str
    family: str
    outcome: str
    stage: str = ""
    message: str = ""
    place: str = ""
    error: float | None = None
    seconds: float = 0.0


def measure(entry: Entry) -> Outcome:
    """Make a model, port it, and check the port."""
    start = time.perf_counter()
    trial = _Trial(entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trial.outcome()
    return Outcome(entry.name, entry.kind, trial.family, **found, error=trial.error,
                   seconds=round(time.perf_counter() - start, 1))  # fmt: skip


class _Trial:
    """The checks of one model, and how far they went."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.family, self.stage = "", "build"
        self.error: float | None = None
        self.silent: list[str] = []
        self.partly: list[str] = []

    def outcome(self) -> dict[str, Any]:
        """Fields of the outcome."""
        try:
            self._run()
        except IsospikeError as error:
            return {"outcome": REFUSED, "stage": self.stage, "message": str(error)}
        except Exception as error:  # noqa: BLE001, a crash is a result
            outcome = UNBUILT if self.stage == "build" else CRASH
            message = f"{type(error).__name__}: {error}"
            return {"outcome": outcome, "stage": self.stage, "message": message[:600],
                    "place": _place(error)}  # fmt: skip
        if self.silent or self.partly:
            first, *_ = said = [*self.silent, *self.partly]
            return {"outcome": SILENT if self.silent else PARTLY, "message": "; ".join(said),
                    "stage": first.partition(":")[0]}  # fmt: skip
        return {"outcome": WORKS}

    def _run(self) -> None:
        entry = self.entry
        model = make(entry)
        config = getattr(model, "config", None)
        self.family = getattr(config, "model_type", None) or type(model).__name__
        calibration = draw(entry.inputs, CALIBRATION, 1)
        held, batch = draw(entry.inputs, HELD_OUT, 2), draw(entry.inputs, ROWS, 3)
        expected = _outputs(in_float32(model), batch)
        if not expected or not all(bool(y.isfinite().any()) for y in expected.values()):
            raise ValueError("outputs without a finite number")
        self.stage = "port"
        ported = isospike.port(model, [calibration], evaluation=[held], steps=STEPS)
        self.error = float(ported.report.error)
        self.stage = "float phase"
        found = ported._builder.discovery  # a second one would take half as long again
        self._same("float phase", expected, _outputs(found.template.model, batch), batch)
        self._check(ported, found, batch)

    def _check(self, ported: Port, found: Discovery, batch: Mapping[str, Any]) -> None:
        self.stage = "stepped"
        collapsed = _outputs(ported.model, batch)
        with run_of(ported.model).switched(execution="stepped"):
            stepped = _outputs(ported.model, batch)
            self._equal("stepped", collapsed, stepped)
            if ported.report.exceptions:  # of an audit of the stepped port
                self.stage = "audit"
                real = isospike.audit(ported.model, batch).first_real or ported.report.exceptions[0]
                count = len(ported.report.exceptions)
                self.partly.append(f"audit: {count} modules do not read spikes, first {real}")
        self.stage = "save"
        with TemporaryDirectory() as folder:
            try:
                ported.save(Path(folder) / "port")
            except IsospikeError as error:
                self.partly.append(f"save: {error}")
            else:
                self.stage = "load"
                loaded = self._loaded(Path(folder) / "port")
                self._equal("load", collapsed, _outputs(loaded, batch))
        if self.entry.prompt is not None:
            self.stage = "generate"
            self._generate(draw(self.entry.prompt, ROWS, 4), found, ported.model)

    def _loaded(self, folder: Path) -> nn.Module:
        """The saved port; where its class does not rebuild it, the float model is given as new."""
        try:
            return isospike.load(folder)
        except UnsupportedError:
            return isospike.load(folder, make(self.entry))

    def _generate(self, prompt: Mapping[str, Any], found: Discovery, ported: nn.Module) -> None:
        model = in_float32(found.model)
        original, scores = _written(model, prompt)
        if not torch.equal(original, _written(found.template.model, prompt)[0]):
            self.silent.append("generate: the float phase writes another text")
        text, uncached = _written(model, prompt, use_cache=False)
        if not torch.equal(original, text) or _difference(scores, uncached, None) > FLOAT:
            return  # the model itself computes something else with a cache
        if torch.equal(_written(ported, prompt)[0], _written(ported, prompt, use_cache=False)[0]):
            return
        # Some compute one token by another function than many: the roundings differ, no more.
        cached, whole = (
            _difference(scores, _written(ported, prompt, use_cache, original)[1], None)
            for use_cache in (True, False)
        )
        if not cached < AS_EXACT * whole:
            self.silent.append(f"generate: with a cache it errs {cached / whole:.1f} times as much")

    def _same(
        self, what: str, expected: dict[str, Tensor], got: dict[str, Tensor],
        batch: Mapping[str, Any],
    ) -> None:  # fmt: skip
        masks = token_masks(batch)
        for name in expected:
            if name not in got:
                self.silent.append(f"{what}: no output {name}")
                return
            mask = masks.get("decoder_" if "decoder_input_ids" in batch
                             and not name.startswith("encoder") else "")  # fmt: skip
            difference = _difference(expected[name], got[name], mask)
            if not difference < FLOAT:
                self.silent.append(f"{what}: {name} differs by {difference:.2g}")
                return

    def _equal(self, what: str, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
        if list(expected) != list(got):
            self.silent.append(f"{what}: other outputs")
        for name in expected:
            if name in got and not _identical(expected[name], got[name]):
                difference = _difference(expected[name], got[name], None)
                self.silent.append(f"{what}: {name} differs by {difference:.2g}")
                return


def _outputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor that a model returns, by name; of a cache nothing."""
    with torch.no_grad(), same_draws():
        return dict(_tensors("output", model(**batch)))


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif hasattr(value, "to_tuple"):
        value = dict(value)
    if isinstance(value, Mapping):
        for key, part in value.items():
            if "past_key" not in str(key) and "cache" not in str(key):
                yield from _tensors(str(key) if name == "output" else f"{name}.{key}", part)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, part in enumerate(value):
            yield from _tensors(f"{name}.{i}", part)


def _difference(expected: Tensor, got: Tensor, mask: Tensor | None) -> float:
    """Relative, over the unpadded tokens."""
    if expected.shape != got.shape:
        return float("inf")
    if mask is not None and expected.shape[:2] == mask.shape:
        expected, got = expected[mask], got[mask]
    x, y = expected.double(), got.double()
    both = x.isfinite() & y.isfinite()
    if not torch.equal(x[~both].nan_to_num(), y[~both].nan_to_num()):
        return float("inf")
    return float((x[both] - y[both]).norm() / x[both].norm().clamp_min(1e-30))


def _identical(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())


class _Forced:
    """Has a model write a given text."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __call__(self, written: Tensor, scores: Tensor) -> Tensor:
        chosen = self.text[:, written.shape[1], None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _written(
    model: Any, prompt: Mapping[str, Any], use_cache: bool = True, text: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens that a model writes, or those of ``text``, and its scores for them; no marks of
    images, which stand for one in the prompt."""
    fields = vars(getattr(model, "config", None) or object)
    marks = sorted({v for k, v in fields.items() if MARK.search(k) and isinstance(v, int)})
    with torch.no_grad(), same_draws():
        found = model.generate(
            **prompt, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1, use_cache=use_cache,
            return_dict_in_generate=True, output_logits=True, suppress_tokens=marks or None,
            logits_processor=None if text is None else [_Forced(text)],
        )  # fmt: skip
    return found.sequences, torch.cat(found.logits)


def _place(error: BaseException) -> str:
    """The last line of isospike's, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/isospike/" in f.filename]
    shown = [*ours[-1:], *(f for f in frames[-1:] if f not in ours[-1:])]
    return " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in shown)
