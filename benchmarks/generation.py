"""Text that ports write in the ways of transformers, beside the text they write without a cache."""

import logging
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace as P
from typing import Any

import torch
from torch import Tensor, nn

import isospike
from benchmarks.port import read_stories
from isospike.experiments.study import Findings, Goal, study
from isospike.porting.fidelity import in_float32, same_draws
from isospike.progress import update
from isospike.report.table import Table

NEW_TOKENS, ROWS = 8, 3
GREEDY = {"do_sample": False, "num_beams": 1}
SAME, OTHER = "same", "other"

NAMES = (
    "Llama",
    "GPT-2",
    "Gemma2",
    "BLOOM",
    "Mixtral",
    "GPT-OSS",
    "T5",
    "BART",
    "Whisper",
    "LLaVA",
)

Write = Callable[[Any, Mapping[str, Any]], Any]


def _text(model: Any, prompt: Mapping[str, Any], **more: Any) -> Tensor:
    arguments = {**GREEDY, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, **more}
    with torch.no_grad(), same_draws():
        found: Tensor = model.generate(**prompt, **arguments)
    return found


def _against(base: dict[str, Any], **more: Any) -> Callable[[Any, Any, Any], bool]:
    """Whether a way writes what the ``base`` does without a cache."""

    def same(model: Any, prompt: Any, _: Any) -> bool:
        expected = _text(model, prompt, use_cache=False, **base)
        return torch.equal(_text(model, prompt, **{**base, **more}), expected)

    return same


def _assisted(model: Any, prompt: Any, draft: Any) -> bool:
    """The float model proposes tokens, the port accepts them or not."""
    row = _alone(prompt, 0)
    expected = _text(model, row, use_cache=False)
    return torch.equal(_text(model, row, assistant_model=draft), expected)


def _padded(model: Any, prompt: Any, _: Any) -> bool:
    """A row that is padded on the left writes what it writes alone."""
    together = _text(model, prompt)
    alone = [_text(model, _alone(prompt, i)) for i in range(ROWS)]
    return all(torch.equal(together[i, -NEW_TOKENS:], alone[i][0, -NEW_TOKENS:])
               for i in range(ROWS))  # fmt: skip


def _alone(prompt: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One row without its padding."""
    found = {k: v[row : row + 1] for k, v in prompt.items()}
    mask = found.get("attention_mask")
    if mask is None or mask.shape != found.get("input_ids", mask).shape:
        return found
    kept = mask[0].bool()
    return {k: v[:, kept] if v.shape == mask.shape else v for k, v in found.items()}


def _maps(model: Any, prompt: Any, _: Any) -> bool:
    """Every step gives the weights of its keys, which add up to 1, or to less beside a sink; a row
    that sees no key may have none."""
    found = _text(model, prompt, output_attentions=True, return_dict_in_generate=True)
    maps = found.get("attentions", found.get("decoder_attentions"))
    sums = torch.cat([weights.sum(-1).flatten() for step in maps for weights in step])
    if any("sinks" in name for name, _ in model.named_parameters()):
        return bool(((sums > 0) & (sums < 1)).all())
    return bool((((sums - 1).abs() < 1e-4) | (sums == 0)).all())


WAYS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "greedy": _against({}),
    "sampling": _against({"do_sample": True, "temperature": 1.0}),
    "beams": _against({"num_beams": 3}),
    "static cache": _against({}, cache_implementation="static"),
    "quantised cache": _against({}, cache_implementation="quantized"),
    "prompt look-up": lambda m, p, d: _against({}, prompt_lookup_num_tokens=2)(m, _alone(p, 0), d),
    "assisted": _assisted,
    "left padding": _padded,
    "maps": _maps,
}
"""By name: whether the text is the same as without a cache, of a model, a prompt and a draft."""


def judge(way: str, model: Any, prompt: Mapping[str, Any], draft: Any) -> str:
    """What becomes of a way to write: ``same``, ``other``, or the first line of its error."""
    try:
        return SAME if WAYS[way](model, prompt, draft) else OTHER
    except Exception as error:  # noqa: BLE001, a refusal is a result
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def one_model(name: str, ways: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Way, what becomes of it in float, and in the port."""
    import benchmarks.zoo.models  # noqa: F401, registers them
    from benchmarks.zoo.registry import ENTRIES, draw, make

    entry = ENTRIES[name]
    model = make(entry)
    batches = [draw(entry.inputs, 24, 1)]
    port = isospike.port(model, batches, evaluation=[draw(entry.inputs, 8, 2)]).model
    prompt, float_model = draw(entry.prompt, ROWS, 4), in_float32(model)
    return [(way, judge(way, float_model, prompt, float_model), judge(way, port, prompt, model))
            for way in ways]  # fmt: skip


def long_cache(length: int) -> bool:
    """Whether a step behind so many tokens gives the bits that it gives without a cache."""
    from benchmarks.zoo.decoders import SIZES
    from benchmarks.zoo.registry import from_config, scattered

    sizes = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": length + 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = scattered(from_config("LlamaForCausalLM", sizes))
    ids = torch.randint(5, 100, (1, length + 1), generator=torch.Generator().manual_seed(1))
    port = isospike.port(model, [{"input_ids": ids[:, : min(256, length)].reshape(-1, 32)}]).model
    with torch.no_grad():
        cache = port(input_ids=ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        step = port(input_ids=ids[:, -1:], past_key_values=cache).logits
        whole = port(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    return torch.equal(step, whole)


@study(
    "generation",
    question="Does a port write the same text in every way that transformers knows?",
    presets={
        "tiny": P(names=("Llama",), ways=("greedy", "left padding"), long=64, length=24),
        "small": P(names=("Llama", "T5"), ways=tuple(WAYS), long=512, length=24),
        "full": P(names=NAMES, ways=tuple(WAYS), long=4096, length=512),
    },
)
def generation(p, ctx):
    """Small random models, and stories260K to the end of its context."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    rows, count = [], {SAME: 0, OTHER: 0, "refused": 0, "float differs": 0}
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for done, name in enumerate(p.names):
            update("write", done, len(p.names))
            found[name] = one_model(name, p.ways)
        stepped = long_cache(p.long)
        model, _, prompt = read_stories(p, ctx)
        length = model.config.max_position_embeddings - prompt.shape[1]
        port = isospike.port(model, [{"input_ids": prompt.repeat(2, 16)[:, : min(64, length)]}])
        most = {"max_new_tokens": length, "min_new_tokens": length}
        texts = [
            _text(port.model, {"input_ids": prompt}, use_cache=cache, **most)
            for cache in (True, False)
        ]
    for name, ways in found.items():
        for way, in_float, got in ways:
            if got == SAME:
                kind = SAME
            elif in_float != SAME:
                kind = "float differs"
            else:
                kind = OTHER if got == OTHER else "refused"
            count[kind] += 1
            if kind != SAME:
                rows.append((name, way, in_float, got))
    grid = Table(
        "Text beside that without a cache",
        ("model", *p.ways),
        tuple((name, *(w[2].partition(":")[0] for w in ways)) for name, ways in found.items()),
        "Maps: whether they are given and add up to 1. An error's name: it is refused.",
    )
    why = Table("What is not the same", ("model", "way", "float", "port"), tuple(rows))
    numbers = {"cells": sum(count.values()), **count, "long cache, same bits": int(stepped),
               "stories, tokens written": texts[0].shape[1],
               "stories, same tokens": int((texts[0] == texts[1]).sum())}  # fmt: skip
    goals = {
        "texts that differ where float's do not": Goal(count[OTHER], 0),
        f"a step behind {p.long} tokens, same bits": Goal(int(stepped), 1, at_least=True),
        "stories260K, tokens that differ with a cache": Goal(
            int((texts[0] != texts[1]).sum()), 0
        ),
    }  # fmt: skip
    return Findings(numbers, [grid, why] if rows else [grid], goals)
