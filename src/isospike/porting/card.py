"""The model card of a port: what it is, how good it is, how it was made, whose licence it has."""

import re
from pathlib import Path
from typing import Any

from torch import nn

from isospike.porting.report import PortReport
from isospike.report.numbers import number, percent, si

_TASKS = {
    "ForCausalLM": "text-generation", "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask", "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification", "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification", "Model": "feature-extraction",
}  # fmt: skip
_AUTO = {
    "text-generation": "AutoModelForCausalLM", "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification", "feature-extraction": "AutoModel",
}  # fmt: skip
_KEPT = re.compile(r"(license|license_name|license_link): *(\S.*)")


def model_card(report: PortReport, original: nn.Module) -> str:
    """The card of a port, in Markdown, with the header that the hub reads.

    Args:
        report: What was measured of it.
        original: The float model; the licence is that of the card beside it, if there is one.
    """
    place = str(getattr(original, "name_or_path", "") or "")
    task = next((t for end, t in _TASKS.items() if type(original).__name__.endswith(end)), "")
    licence = _licence(place)
    head = [
        "library_name: transformers",
        *([f"pipeline_tag: {task}"] if task else []),
        *licence,
        *([f"base_model: {place}"] if re.fullmatch(r"[\w.-]+/[\w.-]+", place) else []),
        "tags:\n- isospike\n- spiking-neural-network",
    ]
    said = licence[0].partition(": ")[2] if licence else ""
    whose = f"That of the original: {said}." if said else (
        "That of the original, which names none in the files beside it: see where it is from."
    )  # fmt: skip
    lines = [
        "---", *head, "---", "",
        f"# {report.title}", "",
        report.verdict(), "",
        "| measured on held-out inputs | |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in _figures(report)), "",
        "## How to load it", "", "```python", *_usage(task), "```", "",
        "Without `import isospike`, transformers refuses this folder: its weights are folded into "
        "a network of spikes and give wrong numbers in any other.", "",
        "## How it was made", "",
        f"From {report.model}, {_training(report)}, by isospike "
        f"{report.provenance.versions.get('isospike', '')}"
        + (f": `{report.provenance.command}`." if report.provenance.command else "."),
        f"It was calibrated on {report.calibration_tokens:,} tokens and measured on "
        f"{report.held_out_tokens:,} others. {_parameters(report)}", "",
        "## Licence", "", whose, "",
    ]  # fmt: skip
    return "\n".join(lines)


def _figures(report: PortReport) -> list[tuple[str, str]]:
    found = [
        ("code", f"{report.code}, {report.steps_text()} time steps"),
        ("error of the output", percent(report.error)),
    ]
    found += [(f"error on {t.name} inputs", percent(t.error)) for t in report.texts[1:]]
    if report.cosine_pooled is not None:
        found.append(("cosine, pooled over tokens", f"{report.cosine_pooled:.4f}"))
    if report.agreement is not None:
        found.append(("tokens with the same arg-max", percent(report.agreement)))
    found.append(("spikes per token", si(report.spikes)))
    if report.counts.macs:
        rate = number(report.synaptic_ops / report.counts.macs)
        found.append(("additions per multiplication of the original", rate))
    return found


def _usage(task: str) -> list[str]:
    auto = _AUTO.get(task)
    if auto is None:
        return ["import isospike", "", 'model = isospike.load("this folder")']
    return [
        "import isospike  # transformers knows ports once it is imported",
        f"from transformers import {auto}", "",
        f'model = {auto}.from_pretrained("this folder, or its name on the hub")',
    ]  # fmt: skip


def _training(report: PortReport) -> str:
    trained = report.provenance.parameters.get("trained", False)
    return "trained further as a port" if trained else "without training"


def _parameters(report: PortReport) -> str:
    given = report.provenance.parameters
    return "Settings: " + ", ".join(f"{k} {v}" for k, v in given.items() if v is not None) + "."


def _licence(place: str) -> list[str]:
    """The lines of the original's card that name its licence."""
    text = _card_of(place)
    if not text.startswith("---"):
        return []
    head = text[3:].partition("\n---")[0].splitlines()
    return [line.strip() for line in head if _KEPT.fullmatch(line.strip())]


def _card_of(place: str) -> str:
    """The card of a folder, or of a name on the hub if it is on this computer."""
    path: Any = Path(place) / "README.md"
    if place and not Path(place).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(place, "README.md")
        except HFValidationError:
            return ""
    if not place or not isinstance(path, str | Path) or not Path(path).is_file():
        return ""
    return Path(path).read_text(encoding="utf-8", errors="replace")[:20_000]
