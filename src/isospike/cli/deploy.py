"""``isospike export``: a port or a spiking transformer as a file that others read."""

import json
from pathlib import Path
from typing import Any

from isospike.cli.app import command
from isospike.cli.emit import Outcome
from isospike.errors import InputError, UnsupportedError
from isospike.hf.load import find_port, is_port

FORMATS = ("nir", "onnx", "c")


@command(
    "Port",
    examples=(
        "isospike export out/minilm --to onnx",
        "isospike export out/minilm --to nir --partial --out minilm.nir",
        "isospike export out/trained --to c --size 32",
    ),
)
def export(
    port: Path,
    *,
    to: str,
    partial: bool = False,
    strict: bool = False,
    size: int = 32,
    out: Path | None = None,
) -> Outcome:
    """Write a port or a trained spiking transformer as a file that others read.

    ``onnx``: the whole port of a BERT or Llama as a graph of whole numbers, for any length and
    number of texts; ported with --functions spiking, a BERT gives the same bits everywhere.
    ``nir``: the graph of spiking layers that simulators and chips read. Softmax and normalisation
    have no node there, so of a port it holds the products, each between two ports of the graph; a
    trained spiking transformer may fit as a whole. ``c``: a trained spiking transformer as one C99
    file with weights of 8 bits. What does not fit is listed, part by part, before anything is
    written.

    Args:
        to (FORMAT): nir, onnx or c.
        partial: With --to nir: write the parts that the format can hold, and list the others.
            Without it, nothing is written unless all parts fit.
        strict: With --to onnx: refuse a port whose softmax, normalisation and activations are in
            float, since each runtime rounds these in its own way.
        size (PIXELS): Height and width of the images of a spiking transformer.
        out (FILE): The file to write. [default: the folder's name, beside it]
    """
    if to not in FORMATS:
        names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise InputError(f"export needs --to {names}, got {to!r}. Choose one of them.")
    for option, given, one in (("--partial", partial, "nir"), ("--strict", strict, "onnx")):
        if given and to != one:
            raise InputError(
                f"export needs {option} only with --to {one}, got it with --to {to}. Leave it out."
            )
    trained = _is_trained(port)
    if not trained:
        find_port(port)
    place = out if out is not None else port.with_suffix(f".{to}")
    if place.is_dir():
        raise InputError(f"export needs a file for --out, got the folder {place}. Name a file.")
    if trained:
        report = _trained(port, to, place, partial, size)
    elif to == "c":
        raise UnsupportedError(
            f"export needs a trained spiking transformer for c, got the port {port}. Export it to "
            "onnx."
        )
    else:
        report = _nir(port, place, partial) if to == "nir" else _onnx(port, place, strict)
    return Outcome(data=report.to_json(), text=report.summary(), saved=place)


def _is_trained(folder: Path) -> bool:
    """Whether this is a spiking transformer that transformers saved; False if it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["model_type"]).startswith("isospike-") and not is_port(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _trained(folder: Path, to: str, place: Path, partial: bool, size: int) -> Any:
    import isospike.models  # noqa: F401 - which registers its models
    from isospike.deploy.families import family_network
    from isospike.hf.load import quiet_transformers, wrap_foreign_errors

    if to == "onnx":
        raise UnsupportedError(
            f"export needs a port for onnx, got the spiking transformer {folder}. Export it to nir "
            "or c."
        )
    if to == "nir":
        from isospike.deploy.nir import find_nir, write_nir

        find_nir("export")
    kind = quiet_transformers().AutoModelForImageClassification
    needs = f"export needs a model that transformers can load, {str(folder)!r}"
    with wrap_foreign_errors(needs, "Train it again, or copy it whole."):
        model = kind.from_pretrained(folder, local_files_only=True).eval()
    if to == "nir":
        network, refused = family_network(model, (size, size), partial=partial)
        write_nir(network, place, {"code": "binary", "steps": int(model.config.steps)})
    else:
        from isospike.deploy.c import round_network, write_c

        network, refused = family_network(model, (size, size))
        write_c(round_network(network), place, title=type(model).__name__)
    nodes = tuple((n, type(network.node(n)).__name__) for n in network.places)
    return _report(folder, to, nodes, refused, place)


def _nir(port: Path, place: Path, partial: bool) -> Any:
    from isospike.deploy.nir import find_nir, write_nir
    from isospike.deploy.ports import port_network
    from isospike.porting.files import load

    find_nir("export")
    model: Any = load(port)
    network, refused = port_network(model, partial=partial)
    code = next(m.site.code for m in model.modules() if hasattr(m, "site"))
    write_nir(network, place, {"code": str(code), "steps": int(code.steps)})
    nodes = tuple((n, type(network.node(n)).__name__) for n in network.places)
    return _report(port, "nir", nodes, refused, place)


def _onnx(port: Path, place: Path, strict: bool) -> Any:
    from isospike.deploy.onnx import find_onnx, write_onnx
    from isospike.porting.files import load

    find_onnx("export")
    model: Any = load(port)
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
