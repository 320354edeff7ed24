"""Error of a whole model against time steps, for several codes, on a few inputs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from isospike import codes as known
from isospike.codes import CODES
from isospike.errors import InputError
from isospike.hf.attention import route
from isospike.hf.batches import Batch
from isospike.porting.fidelity import same_draws
from isospike.porting.measure import SpikeMeter, compare
from isospike.porting.plan import Builder
from isospike.porting.records import CurvePoint
from isospike.progress import update
from isospike.report import codec
from isospike.report.files import write_file
from isospike.workers import Workers, map_cells

SWEEP_ROWS = 8  # of the first evaluation batch, that a point is measured on

Cell = tuple[str, int]
"""Name of a code, and steps."""


def sweep(
    builder: Builder,
    codes: Sequence[str],
    workers: Workers | None = None,
    folder: Path | None = None,
) -> tuple[CurvePoint, ...]:
    """Error and spikes of every code at a few numbers of steps.

    Args:
        builder: Makes the ports.
        codes: Names of the codes.
        workers: See :func:`isospike.workers.map_cells`; None for this process on all its threads.
        folder: Where points are kept until all are there; None keeps none.
    """
    few = builder.inputs.few(builder.inputs.evaluation[0], SWEEP_ROWS)
    cells = [(code, steps) for code in codes for steps in CODES[code].sweep_steps]
    key = "" if folder is None else _key(builder)
    found: dict[Cell, CurvePoint] = {}
    for cell in cells:
        path = None if folder is None else _place(folder, key, cell)
        if path is not None and path.exists():
            found[cell] = _read(path)

    def finish(cell: Cell, point: CurvePoint) -> None:
        if folder is not None:
            write_file(_place(folder, key, cell), json.dumps(asdict(point)).encode())
        found[cell] = point
        update("compare codes", len(found), len(cells))

    left = [cell for cell in cells if cell not in found]
    if cells:
        update("compare codes", len(found), len(cells))
    if left and workers is not None:
        _ = builder.statistics  # taken once, for all workers
        map_cells(partial(_point, builder, few), left, workers, finish)
    elif left:
        expected = _expected(builder, few)
        for cell in left:
            finish(cell, _point(builder, few, cell, expected))
    return tuple(found[cell] for cell in cells)


def _point(builder: Builder, few: Batch, cell: Cell, expected: Sequence[object] = ()) -> CurvePoint:
    """Every point draws the same numbers, whichever were computed before it."""
    code = known.code(*cell)
    route(builder.discovery.template.model)  # another process has registered nothing yet
    if builder.generator is not None:
        builder = _own_generator(builder)
    ported = builder.build(builder.uniform(type(code), code.steps)).ported
    meter = SpikeMeter(ported.run)
    comparison = compare(builder.discovery.model, ported, [few], meter, expected)
    return CurvePoint(*cell, comparison.error, meter.spikes / comparison.tokens)


def _own_generator(builder: Builder) -> Builder:
    """The same with a generator of its own, in the state of its generator."""
    before = builder.generator
    if before is None:
        return builder
    after = torch.Generator(before.device)
    after.set_state(before.get_state())
    copied = replace(builder, generator=after)
    vars(copied).update(statistics=builder.statistics)
    return copied


def _expected(builder: Builder, few: Batch) -> list[object]:
    with torch.no_grad(), same_draws():
        return [builder.discovery.model(**few)]


def _key(builder: Builder) -> str:
    """A digest of all that a point depends on, but the code of the program."""
    digest = hashlib.sha256()
    inputs = builder.inputs
    parts: list[object] = [torch.__version__, builder.mode, builder.ranges]
    for name, tensor in builder.discovery.model.state_dict().items():
        parts += [name, tensor]
    for batch in (*inputs.calibration, inputs.evaluation[0]):
        parts += [part for item in sorted(batch.items()) for part in item]
    if builder.generator is not None:
        parts.append(builder.generator.get_state())
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(str((part.dtype, part.shape)).encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def _place(folder: Path, key: str, cell: Cell) -> Path:
    return folder / f"{key}-{cell[0]}-{cell[1]}.json"


def _read(path: Path) -> CurvePoint:
    try:
        point: CurvePoint = codec.decode(CurvePoint, json.loads(path.read_bytes()))
    except ValueError as error:
        raise InputError(
            f"sweep needs whole files of points, got {path} ({error}). Remove it and run again."
        ) from error
    return point
