"""How many architectures can be ported, and what a port of each keeps: every model of the zoo."""

import statistics
from collections.abc import Sequence
from types import SimpleNamespace as P

from benchmarks.zoo.measure import CRASH, OUTCOMES, PARTLY, REFUSED, SILENT, TIMEOUT, WORKS, Outcome
from isospike.experiments.study import Findings, Goal, study
from isospike.report.table import Table

VARIANTS = ("plain", "variants")
"""Kinds that are not architectures of transformers."""

BEFORE = {WORKS: (128, 21), PARTLY: (9, 5), REFUSED: (106, 19), SILENT: (7, 8), CRASH: (5, 5),
          TIMEOUT: (0, 2)}  # fmt: skip
"""The same models, architectures and variants, before products were found by operator."""

NAMED = (
    "T5", "FLAN-T5 (gated)", "mT5", "BART", "Whisper", "Wav2Vec2 CTC", "HuBERT", "Moonshine",
    "DeBERTa-v2/v3", "MPNet", "ALBERT", "Longformer", "XLNet", "Gemma2", "Gemma3 text", "GPT-OSS",
    "BLOOM", "Falcon (new decoder)", "GPT-Neo", "MPT", "Mixtral", "Qwen3-MoE", "OLMoE",
    "DeepSeek-V3 MoE", "Mamba", "SigLIP", "CLIP", "LLaVA", "Qwen2.5-VL", "Idefics3/SmolVLM", "Swin",
    "SwinV2", "SegFormer", "ConvNeXt", "DETR", "SAM", "DINOv2", "nn.MultiheadAttention",
    "nn.TransformerEncoder batch_first", "timm ViT", "SentenceTransformer in a wrapper",
)  # fmt: skip
"""Models that must be ported, whatever else is."""


def is_variant(found: Outcome) -> bool:
    """Whether a model is a plain module or a variant rather than an architecture."""
    return found.kind in VARIANTS


def count_outcomes(found: Sequence[Outcome]) -> Table:
    """How many models came to each outcome."""
    rows = []
    for outcome, meaning in OUTCOMES.items():
        counts = [
            sum(f.outcome == outcome for f in found if is_variant(f) == variant)
            for variant in (False, True)
        ]
        before = BEFORE.get(outcome, (0, 0))
        if any((*counts, *before)):
            rows.append((outcome, meaning, counts[0], before[0], counts[1], before[1]))
    meaning = (
        "Architectures are models of transformers and their heads; variants are plain PyTorch, "
        "timm, number types, masks, wrappers and adapters. Before: the same models when products "
        "were found by module."
    )
    head = ("outcome", "meaning", "architectures", "before", "variants", "before")
    names = ("outcome", "meaning", "architectures", "architectures before", "variants",
             "variants before")  # fmt: skip
    return Table("Models by outcome", head, tuple(rows), meaning, names=names)


def list_families(found: Sequence[Outcome]) -> Table:
    """One row for each architecture, in the order of the zoo."""
    families: dict[tuple[str, str], list[Outcome]] = {}
    for f in found:
        family = f.name if f.kind == "plain" else f.family or f.name
        families.setdefault((f.kind, family), []).append(f)
    rows = []
    for (kind, family), members in families.items():
        working = [f for f in members if f.outcome == WORKS]
        errors = [f.error for f in members if f.error is not None]
        others = "; ".join(f"{f.name}: {f.outcome}" for f in members if f.outcome != WORKS)
        error = statistics.median(errors) if errors else None
        rows.append((kind, family, len(members), len(working), error, others))
    meaning = (
        "One row a family, as its configuration in transformers calls it. Tried: models and heads. "
        "Error: of a port at 8 steps, relative, the median of the family; weights are random, so "
        "it is smaller than a trained model's."
    )
    head = ("kind", "family", "tried", "work", "error", "what else")
    return Table("Support by family", head, tuple(rows), meaning, ("",) * 4 + (".3f", ""))


def brief(message: str) -> str:
    """The first sentence of a message, without line breaks and marks of tables."""
    line = " ".join(message.split()).replace("|", "/")
    sentence = line.partition(". ")[0].rstrip(".")
    return f"{sentence[:200].rsplit(' ', 1)[0]} ..." if len(sentence) > 200 else sentence


def list_others(found: Sequence[Outcome]) -> Table:
    """Every model that does not work, and what was said."""
    rows = tuple(
        (f.name, f.outcome, f.stage, brief(f.message)) for f in found if f.outcome != WORKS
    )
    meaning = "What was being done when it ended, or the first check that failed."
    return Table("Models that do not work", ("model", "outcome", "at", "said"), rows, meaning)


@study(
    "architectures",
    question="Which architectures can be ported, and does the port do all that it promises?",
    presets={"tiny": P(names=("BERT", "GPT-2", "MLP only")), "small": P(names=NAMED),
             "full": P(names=())},
)  # fmt: skip
def architectures(p, ctx):
    """Random small models: the float phase, both executions, files, the audit and generation."""
    import benchmarks.zoo.models  # noqa: F401, registers them
    from benchmarks.zoo.pool import measure_all
    from benchmarks.zoo.registry import ENTRIES
    from isospike.progress import update

    entries = [ENTRIES[name] for name in p.names or ENTRIES]
    done = []

    def note(one: Outcome) -> None:
        done.append(one)
        update("port models", len(done), len(entries))

    found = measure_all(entries, max(2, ctx.workers), done=note)
    count = {o: sum(f.outcome == o for f in found) for o in OUTCOMES}
    working = [f for f in found if f.outcome == WORKS]
    numbers = {"models": len(found), **count}
    goals = {}
    if not p.names:
        goals = {
            "architectures that work, of 255": Goal(
                sum(not is_variant(f) for f in working), 240, at_least=True
            ),
            "variants that work, of 60": Goal(sum(map(is_variant, working)), 54, at_least=True),
            "named models that work, of 41": Goal(
                sum(f.name in NAMED for f in working), 41, at_least=True
            ),
            "crashes": Goal(count[CRASH], 0),
            "models that differ without a word": Goal(count[SILENT], 0),
        }
    tables = [count_outcomes(found), list_families(found)]
    if len(working) < len(found):
        tables.append(list_others(found))
    return Findings(numbers, tables, goals)
