"""What a port answered when it was saved, on a long and a short row, to compare with at loading."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isospike.codes import BernoulliCode
from isospike.errors import InputError
from isospike.hf.batches import Batch, batch_size, count_tokens, first_output, rows_of
from isospike.porting.ported import Ported

TOLERANCE = 1e-3
ELSEWHERE = 0.1
"""On another processor or with another torch, sums round differently, and a value at the edge of
two levels may change its level."""

_KEPT, _KEPT_OF_MODULE = 256, 16  # values of an output, evenly spaced
_MOST_BYTES = 2**24  # of the rows; longer ones are left out


def sample_rows(batches: Sequence[Batch], divides: bool = True) -> list[dict[str, Any]]:
    """A long and a short row.

    Args:
        batches: Of which they are taken.
        divides: Whether the model takes some rows of a batch.

    Returns:
        Two batches of one row, or whole ones; one if there is one.
    """
    rows = [dict(b) for b in batches]
    if divides:
        rows = [rows_of(b, slice(i, i + 1)) for b in batches for i in range(batch_size(b))]
    rows.sort(key=count_tokens)
    chosen = rows[-1:] + rows[:-1][:1]
    return [row for row in chosen if _bytes(row) <= _MOST_BYTES and _json(row) is not None]


def take_fingerprint(ported: Ported, rows: Sequence[Batch]) -> tuple[dict[str, Tensor], str]:
    """Run a port on some rows.

    Args:
        ported: It keeps its mode.
        rows: See :func:`sample_rows`.

    Returns:
        Tensors by name, and JSON that says which is which: :func:`check_fingerprint` takes both.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {"made": _environment(ported), "rows": []}
    for i, row in enumerate(rows):
        order, values = _run(ported, row)
        # Arguments may share memory, such as labels and what they label; in a file they may not.
        tensors |= {f"row.{i}.{key}": _own(v) for key, v in _tensors(row).items()}
        tensors[f"values.{i}"] = torch.cat([values.pop(name) for name in order])
        about["rows"].append({"order": order, "arguments": _json(row)})
    return tensors, json.dumps(about)


def check_fingerprint(ported: Ported, tensors: dict[str, Tensor], text: str) -> None:
    """Raise unless a port answers as the one that was saved did.

    Args:
        ported: The port that was loaded.
        tensors: Of :func:`take_fingerprint`.
        text: likewise.

    Raises:
        InputError: It differs; the message names the first module that does.
    """
    about = json.loads(text)
    same = about["made"] == _environment(ported)
    if not same and any(isinstance(site.code, BernoulliCode) for site in ported.sites):
        return  # other random numbers
    limit = TOLERANCE if same else ELSEWHERE
    for i, (row, batch) in enumerate(zip(about["rows"], saved_rows(tensors, text), strict=True)):
        order, values = _run(ported, batch)
        sizes = [len(values[name]) for name in order]
        then = dict(zip(order, torch.split(tensors[f"values.{i}"], sizes), strict=True))
        # Elsewhere a module may differ by a level here and there.
        compared = [name for name in order if same or not name]
        differs = next((n for n in compared if not _near(values[n], then[n], limit)), None)
        if order != row["order"] or differs is not None:
            raise InputError(
                "load needs a port that answers as it did when it was saved, got another answer "
                f"from {differs or 'its output'} on. Save it again with this version."
            )


def saved_rows(tensors: Mapping[str, Tensor], text: str) -> list[dict[str, Any]]:
    """The rows that :func:`take_fingerprint` was given.

    Args:
        tensors: Of it.
        text: likewise.
    """
    found = []
    for i, row in enumerate(json.loads(text)["rows"]):
        start = f"row.{i}."
        given = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        found.append({**row["arguments"], **given})
    return found


def _near(values: Tensor, then: Tensor, limit: float) -> bool:
    x, y = values.double().nan_to_num(), then.double().nan_to_num()
    return bool((x - y).norm() <= limit * y.norm() + 1e-30)


def _run(ported: Ported, row: Batch) -> tuple[list[str], dict[str, Tensor]]:
    """Some values of the output, called "", and of every product, in the order of their calls."""
    found: dict[str, Tensor] = {}

    def keep(module: Any, _: Any, y: Tensor) -> None:
        if module.name not in found:
            found[module.name] = _some(y, _KEPT_OF_MODULE)

    hooks = [module.register_forward_hook(keep) for module in ported.products]
    device = next(iter(ported.model.parameters())).device
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in row.items()}
    try:
        with _seeded(ported), torch.no_grad():
            found[""] = _some(first_output(ported.model(**moved)), _KEPT)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found), found


def _some(y: Tensor, most: int) -> Tensor:
    flat = y.detach().reshape(-1)
    at = torch.linspace(0, max(0, len(flat) - 1), min(most, len(flat)), dtype=torch.float64)
    return flat[at.long().to(flat.device)].float().cpu()


@contextmanager
def _seeded(ported: Ported) -> Iterator[None]:
    """The same random numbers each time, and none taken from anybody else."""
    before = {id(site): site.generator for site in ported.sites}
    device = next(iter(ported.model.parameters())).device
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices), _evaluating(ported.model):
        torch.manual_seed(0)
        ported.seed(torch.Generator(device).manual_seed(0))
        try:
            with ported.run.switched(execution="collapsed", precision="exact"):
                yield
        finally:
            for site in ported.sites:
                site.generator = before[id(site)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _environment(ported: Ported) -> list[str]:
    """What decides how sums are rounded."""
    device = next(iter(ported.model.parameters())).device.type
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), device]


def _tensors(row: Batch) -> dict[str, Tensor]:
    return {key: value for key, value in row.items() if isinstance(value, Tensor)}


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _bytes(row: Batch) -> int:
    return sum(tensor.nbytes for tensor in _tensors(row).values())


def _json(row: Batch) -> dict[str, Any] | None:
    """The arguments that are no tensors; None if JSON cannot hold them."""
    rest = {key: value for key, value in row.items() if not isinstance(value, Tensor)}
    try:
        return rest if json.loads(json.dumps(rest)) == rest else None
    except (TypeError, ValueError):
        return None
