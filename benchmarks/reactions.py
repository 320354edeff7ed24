"""A pretrained masked language model of chemical reactions on spikes: does it name the same atoms?

The reactions are put together here, from fragments and rules of seven textbook reactions. The
preset ``tiny`` takes a small random model.
"""

import itertools
import random
from types import SimpleNamespace as P

import torch
from transformers import BertConfig, BertForMaskedLM

import isospike
from benchmarks.models import small_bert
from benchmarks.speech import package
from isospike.experiments.study import Findings, Goal, study
from isospike.hf.batches import token_masks
from isospike.porting.measure import SpikeMeter
from isospike.porting.ported import Ported
from isospike.report.table import Table

RINGS = ("c1ccccc1", "c1ccc(F)cc1", "c1ccc(OC)cc1", "c1cccnc1", "c1ccc(C#N)cc1", "c1ccsc1",
         "c1ccc(C(F)(F)F)cc1", "c1ccc2ccccc2c1", "c1cnc(C)nc1", "c1cc(Cl)cc(Cl)c1")  # fmt: skip
CHAINS = ("CC", "CCC", "C(C)C", "CC(C)C", "C1CCCCC1", "CCOC", "C1CCOCC1", "CC#C", "CCN(C)C",
          "Cc1ccccc1", "CCC(=O)OC", "C1CC1")  # fmt: skip
EVERY = (*RINGS, *CHAINS)
RULES = {
    "amide": (EVERY, EVERY, "O=C(O){0}.N{1}>>O=C(N{1}){0}"),
    "Suzuki coupling": (RINGS, RINGS, "Br{0}.OB(O){1}.[Pd]>>{1}-{0}"),
    "ester": (EVERY, CHAINS, "O=C(O){0}.O{1}.O=S(=O)(O)O>>O=C(O{1}){0}"),
    "ether": (RINGS, CHAINS, "O{0}.Br{1}.O=C([O-])[O-].[K+].[K+]>>{1}O{0}"),
    "reductive amination": (RINGS, CHAINS, "O=C{0}.N{1}.[BH3-]C#N.[Na+]>>C({0})N{1}"),
    "sulfonamide": (RINGS, EVERY, "O=S(=O)(Cl){0}.N{1}.CCN(CC)CC>>O=S(=O)(N{1}){0}"),
    "urea": (EVERY, EVERY, "O=C=N{0}.N{1}>>O=C(N{0})N{1}"),
}
CALIBRATED = ("amide", "Suzuki coupling")
MASKED = 0.15


def reactions(kind, count, seed):
    """Reactions of one kind, drawn at random, as SMILES."""
    left, right, rule = RULES[kind]
    every = [rule.format(a, b) for a, b in itertools.product(left, right)]
    return random.Random(seed).sample(every, min(count, len(every)))


def load_reactions_model():
    """BertForMaskedLM of the package rxnfp, and the number of each token."""
    folder = package("rxnfp") / "models" / "transformers" / "bert_pretrained"
    config = BertConfig.from_json_file(folder / "config.json")
    state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    names = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    for old, new in names.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    model = BertForMaskedLM(config)
    left = model.load_state_dict(state, strict=False)
    assert_whole(left.missing_keys)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return model.eval(), {word: i for i, word in enumerate(words) if word}


def assert_whole(missing):
    """Refuse a model of which weights are missing.

    Raises:
        isospike.InputError: Some are.
    """
    needed = [name for name in missing if "position_ids" not in name and "decoder" not in name]
    if needed:
        raise isospike.InputError(
            f"reproduce needs all weights of rxnfp, got none for {needed[0]}. Install rxnfp 0.1.0."
        )


def tokens_of(text, vocabulary):
    """The numbers of the longest tokens, one after the other."""
    found, place = [vocabulary["[CLS]"]], 0
    longest = max(map(len, vocabulary))
    while place < len(text):
        size = next((n for n in range(longest, 0, -1) if text[place : place + n] in vocabulary), 0)
        found.append(vocabulary[text[place : place + size]] if size else vocabulary["[UNK]"])
        place += max(1, size)
    return [*found, vocabulary["[SEP]"]]


def masked_batch(texts, vocabulary, seed):
    """Tokens, padded, of which a share is masked; and where."""
    rows = [torch.tensor(tokens_of(text, vocabulary)) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
    inner = mask & (ids != vocabulary["[CLS]"]) & (ids != vocabulary["[SEP]"])
    draw = torch.Generator().manual_seed(seed)
    hidden = inner & (torch.rand(ids.shape, generator=draw) < MASKED)
    given = ids.masked_fill(hidden, vocabulary["[MASK]"])
    return {"input_ids": given, "attention_mask": mask.long()}, hidden, ids


def random_masked(count, seed):
    """The same of random tokens, for a small model."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (count, 12), generator=draw)
    hidden = torch.rand(ids.shape, generator=draw) < MASKED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, hidden, ids


def small_masked():
    """A random BertForMaskedLM."""
    bert = small_bert()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForMaskedLM(bert.config).eval()


def agreement(model, port, made):
    """Shares of tokens with the same arg-max, of all and of masked ones; of masked ones that the
    float model and the port name right; error of a token; spikes a token."""
    batch, hidden, ids = made
    meter = SpikeMeter(Ported.of(port).run)
    with torch.inference_mode(), meter.run.watching(meter, token_masks(batch)):
        got = port(**batch).logits
    with torch.inference_mode():
        expected = model(**batch).logits
    valid = batch["attention_mask"].bool()
    same = (got.argmax(-1) == expected.argmax(-1)).double()
    right = [float((y.argmax(-1) == ids)[hidden].double().mean()) for y in (expected, got)]
    apart = float((got - expected)[valid].norm() / expected[valid].norm())
    return (float(same[valid].mean()), float(same[hidden].mean()), *right, apart,
            meter.spikes / int(valid.sum()))  # fmt: skip


@study(
    "masked-lm",
    question="Does a masked language model name the same tokens on spikes?",
    presets={"tiny": P(rows=0, steps=(8,)),
             "small": P(rows=32, steps=(8,)),
             "full": P(rows=64, steps=(8, 6))},
)  # fmt: skip
def masked_lm(p, ctx):
    """Ports calibrated on two kinds of reactions, on these and on five others."""
    if p.rows:
        model, vocabulary = load_reactions_model()

        def made(kind, seed):
            return masked_batch(reactions(kind, p.rows, seed), vocabulary, seed)

        calibration = [made(kind, 1)[0] for kind in CALIBRATED]
        kinds = {kind: made(kind, 2) for kind in RULES}
    else:
        model = small_masked()
        calibration, kinds = [random_masked(8, 1)[0]], {"random": random_masked(8, 2)}
    numbers, goals, rows = {}, {}, []
    for steps in p.steps:
        result = isospike.port(model, calibration, evaluation=[kinds[next(iter(kinds))][0]],
                               steps=steps)  # fmt: skip
        for kind, some in kinds.items():
            every, masked, before, after, apart, spikes = agreement(model, result.model, some)
            name = f"{kind}, T={steps}"
            numbers |= {f"same arg-max, {name}": every, f"same, masked, {name}": masked,
                        f"right, float, {name}": before, f"right, spikes, {name}": after,
                        f"error, {name}": apart}  # fmt: skip
            seen = "yes" if kind in CALIBRATED else "no"
            rows.append((f"{kind}, {steps}", seen, f"{100 * every:.2f} %", f"{100 * masked:.1f} %",
                         f"{100 * before:.1f} %, {100 * after:.1f} %", f"{apart:.3f}"))  # fmt: skip
            if p.rows and steps == 8:
                goals[f"same arg-max, {name}"] = Goal(every, 0.98, at_least=True)
    head = ("reactions, steps", "calibrated on", "same token", "same, masked",
            "masked named right: float, spikes", "error")  # fmt: skip
    meaning = "At 8 steps nearly every token is the same, also on kinds new to the calibration."
    return Findings(numbers, [Table("Tokens of reactions", head, tuple(rows), meaning)], goals)
