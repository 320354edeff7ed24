"""``isospike export``: a port as a file that other programs and chips read."""

from pathlib import Path
from typing import Any

from isospike.cli.app import command
from isospike.cli.emit import Outcome
from isospike.errors import InputError
from isospike.hf.load import find_port

FORMATS = ("nir", "onnx")


@command(
    "Port",
    examples=(
        "isospike export out/minilm --to onnx",
        "isospike export out/minilm --to nir --partial --out minilm.nir",
    ),
)
def export(
    port: Path, *, to: str, partial: bool = False, strict: bool = False, out: Path | None = None
) -> Outcome:
    """Write a port as a file that other programs and chips read.

    ``onnx``: the whole port as a graph of whole numbers, for any length and number of texts, of an
    encoder such as minilm. ``nir``: the graph of spiking layers that simulators and chips read;
    softmax and normalisation have no node there, so of a transformer it holds the products, each
    between two ports of the graph. What does not fit is listed, part by part, before anything is
    written.

    Args:
        to (FORMAT): nir or onnx.
        partial: Write what the format holds, and list the rest. Without it, everything or nothing.
        strict: Refuse functions in float, which each runtime computes its own way.
        out (FILE): The file to write. [default: the folder's name, beside it]
    """
    if to not in FORMATS:
        raise InputError(f"export needs --to {' or '.join(FORMATS)}, got {to!r}. Choose one.")
    find_port(port)
    place = out if out is not None else port.with_suffix(f".{to}")
    if place.is_dir():
        raise InputError(f"export needs a file for --out, got the folder {place}. Name a file.")
    from isospike.porting.files import load

    model = load(port)
    report = _nir(model, port, place, partial, strict) if to == "nir" else _onnx(
        model, port, place, strict
    )  # fmt: skip
    return Outcome(data=report.to_json(), text=report.summary(), saved=place)


def _nir(model: Any, port: Path, place: Path, partial: bool, strict: bool) -> Any:
    from isospike.deploy.nir import find_nir, write_nir
    from isospike.deploy.ports import port_network

    find_nir("export")
    network, refused = port_network(model, partial=partial and not strict)
    code = next(m.site.code for m in model.modules() if hasattr(m, "site"))
    write_nir(network, place, {"code": str(code), "steps": int(code.steps)})
    nodes = tuple((n, type(network.node(n)).__name__) for n in network.places)
    return _report(port, "nir", nodes, refused, place)


def _onnx(model: Any, port: Path, place: Path, strict: bool) -> Any:
    from isospike.deploy.onnx import write_onnx

    write_onnx(model, place, strict=strict)
    nodes = tuple((n, type(m).__name__) for n, m in model.named_modules() if hasattr(m, "site"))
    return _report(port, "onnx", nodes, [], place)


def _report(port: Path, target: str, nodes: Any, refused: Any, place: Path) -> Any:
    from isospike.deploy.report import ExportReport
    from isospike.report.result import Provenance

    return ExportReport(
        title="Export", model=port.name, target=target, nodes=nodes, refused=tuple(refused),
        written=str(place), provenance=Provenance.of(),
    )  # fmt: skip
