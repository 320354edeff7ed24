"""A port that is trained: what minutes of training win back, beside more steps.

The preset ``tiny`` trains a port of a small random BERT on random tokens.
"""

import random
import time
import warnings
from types import SimpleNamespace as P
from typing import NamedTuple

import torch
import transformers
from torch import nn

import isospike
from benchmarks.models import WORDS, minilm_path, random_batches, read_pairs
from isospike.data import foreign_texts
from isospike.experiments.study import Findings, Goal, study
from isospike.progress import update
from isospike.report.table import Table

SST = ("sst/stsa.binary.train.txt", "sst/stsa.binary.dev.txt")
DEV = "stsb/stsb-en-dev.csv"
MINUTES = 15
HALF = 0.5  # of what the port lost


class Texts(NamedTuple):
    """Batches to train on, batches to calibrate with, and by name those to measure on, with their
    labels if they have some."""

    training: list
    calibration: list
    measured: dict


def read_labelled(path):
    """Labels and sentences, one of each a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [int(line[0]) for line in lines], [line[2:] for line in lines]


def batches(tokenizer, sentences, labels=None, size=32, longest=128):
    """Sentences of similar length together, with their labels."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    found = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        tokens = tokenizer([sentences[i] for i in rows], padding=True, truncation=True,
                           max_length=longest, return_tensors="pt")  # fmt: skip
        marks = None if labels is None else torch.tensor([labels[i] for i in rows])
        found.append((dict(tokens), marks))
    return found


def sentiment(p, ctx):
    """MiniLM with a classifier, its upper half trained on SST-2 in float, and its texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path())
    labels, train = read_labelled(ctx.file(SST[0]))
    training = batches(tokenizer, train, labels, size=16)
    marks, dev = read_labelled(ctx.file(SST[1]))
    left, right, _ = read_pairs(ctx.file(DEV))
    others = (left + right)[:: p.thin]
    chosen = random.Random(0).sample(train, p.sentences)
    measured = {
        "SST-2 dev": batches(tokenizer, dev, marks),
        "STS-B sentences": batches(tokenizer, others),
        "text of other kinds": batches(tokenizer, foreign_texts(), size=8),
    }
    texts = Texts(training, [b for b, _ in batches(tokenizer, chosen)], measured)
    return fine_tuned(p, ctx.folder / f"sst-minilm-{p.tuned}", training), texts


def fine_tuned(p, folder, training, frozen=0.5):
    """The float classifier, of the folder if it is there; a share of its layers, from the first,
    is not trained."""
    automatic = transformers.AutoModelForSequenceClassification
    if (folder / "config.json").exists():
        return automatic.from_pretrained(folder).eval()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        transformers.utils.logging.set_verbosity_error()
        model = automatic.from_pretrained(minilm_path(), dtype="float32", num_labels=2).train()
        model.bert.embeddings.requires_grad_(False)
        layers = model.bert.encoder.layer
        layers[: int(len(layers) * frozen)].requires_grad_(False)

        def loss(batch, labels):
            return model(**batch, labels=labels).loss

        descend(model, training, p.tuned, 1e-4, loss, "fine-tune")
    model.eval().save_pretrained(folder)
    return model


def descend(model, training, count, rate, loss_of, label):
    """AdamW, its rate falling to 0, over batches in a random order; seconds of the
    processor, which on a busy machine are steadier than those of the clock."""
    moved = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(moved, rate, weight_decay=0.0)
    falls = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 20) * (1 - i / count)
    )
    draw, start = random.Random(0), time.process_time()
    order = [k for _ in range(count // len(training) + 1)
             for k in draw.sample(range(len(training)), len(training))]  # fmt: skip
    for done, k in enumerate(order[:count]):
        if done % 20 == 0:
            update(label, done, count)
        loss = loss_of(*training[k])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()
        falls.step()
    return time.process_time() - start


def distil(port, model, training, count, rate):
    """A trained copy of a port, towards every hidden state and the logits of the float model, and
    the seconds it took. Labels are not used."""
    learner = port.trainable().eval()

    def loss(batch, labels):
        with torch.no_grad():
            wanted = model(**batch, output_hidden_states=True)
        got = learner(**batch, output_hidden_states=True)
        mask = batch["attention_mask"].bool()
        pairs = zip(got.hidden_states[1:], wanted.hidden_states[1:], strict=True)
        states = [relative(a[mask], b[mask]) for a, b in pairs]
        return torch.stack(states).mean() + relative(got.logits, wanted.logits)

    seconds = descend(learner, training, count, rate, loss, "train the port")
    return learner, seconds


def relative(got, wanted):
    """Squared error over the square of what is wanted."""
    return (got - wanted).square().sum() / wanted.square().sum().clamp_min(1e-6)


def logits_of(model, measured):
    """Logits by name of the texts."""
    found = {}
    with torch.inference_mode():
        for name, each in measured.items():
            found[name] = torch.cat([model(**batch).logits for batch, _ in each])
    return found


def random_texts():
    """A random classifier and its texts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=64, num_labels=2,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config).eval()
    made = random_batches(6, 8, 12)
    marks = [torch.zeros(8, dtype=torch.long)] * 6
    training = list(zip(made[:3], marks, strict=False))
    measured = {"SST-2 dev": list(zip(made[3:5], marks, strict=False)),
                "STS-B sentences": [(made[5], None)]}  # fmt: skip
    return model, Texts(training, made[:3], measured)


@study(
    "trained-port",
    question="What does a port win back when it is trained for minutes, beside more steps?",
    data=(*SST, DEV),
    extra="demo",
    presets={
        "tiny": P(sentences=None, steps=4, more=6, bits=4, count=4, rate=1e-3),
        "small": P(sentences=64, steps=4, more=6, bits=4, count=40, rate=2e-4, tuned=60, thin=12),
        "full": P(sentences=128, steps=4, more=6, bits=4, count=200, rate=2e-4, tuned=300, thin=8),
    },
)
def trained_port(p, ctx):
    """all-MiniLM-L6-v2 with a classifier, fine-tuned on SST-2 in float, ported, and trained to give
    the float model's hidden states and logits on the training sentences."""
    model, texts = random_texts() if p.sentences is None else sentiment(p, ctx)
    true = logits_of(model, texts.measured)
    port = isospike.port(model, texts.calibration, steps=p.steps, weight_bits=p.bits)
    longer = isospike.port(model, texts.calibration, steps=p.more, weight_bits=p.bits)
    learner, seconds = distil(port, model, texts.training, p.count, p.rate)
    trained = port.trained(learner)
    ways = {
        "float32": model, f"port, T={p.steps}": port.model,
        f"port, T={p.steps}, trained": trained.model, f"port, T={p.more}": longer.model,
    }  # fmt: skip
    spikes = [None, port.report.spikes, trained.report.spikes, longer.report.spikes]
    found = {name: logits_of(each, texts.measured) for name, each in ways.items()}
    numbers = {"minutes of training": seconds / 60}
    for way, logits in found.items():
        each = scores(logits, true, texts.measured)
        numbers |= {f"{what}, {way}": value for what, value in each.items()}
    goals = {}
    if p.sentences is not None:
        goals["minutes of training"] = Goal(seconds / 60, MINUTES)
        lost, left = f"port, T={p.steps}", f"port, T={p.steps}, trained"
        for what in each:
            best = numbers[f"{what}, float32"]
            gone = best - numbers[f"{what}, {lost}"]
            share = 1 - (best - numbers[f"{what}, {left}"]) / gone if gone else 1.0
            numbers[f"won back, {what}"] = share
            goals[f"won back, {what}"] = Goal(share, HALF, at_least=True)
    return Findings(
        numbers, tables(numbers, list(each), dict(zip(ways, spikes, strict=True))), goals
    )


def tables(numbers, scored, spikes):
    """Classes, and errors of the logits, of every way.

    Args:
        numbers: Of the study.
        scored: Names of the scores.
        spikes: Of each way, a text: its output is one for each.
    """

    def lines(names, more=None):
        return tuple(
            (
                way,
                *(f"{numbers[f'{name}, {way}']:.3f}" for name in names),
                *(more or {}).get(way, ()),
            )
            for way in spikes
        )

    errors = [name for name in scored if name.startswith("error")]
    classes = [name for name in scored if name not in errors]
    counts = {way: (None if n is None else f"{n:,.0f}",) for way, n in spikes.items()}
    return [
        Table("MiniLM on SST-2, trained as a port", ("model", *classes, "spikes/text"),
              lines(classes, counts),
              "Accuracy on labelled sentences, and the share of sentences that are given the float "
              "model's class: minutes of training win back little of what four steps lose."),
        Table("Errors of the logits", ("model", *errors), lines(errors),
              "The difference from the float model's logits over their size."),
    ]  # fmt: skip


def scores(logits, true, measured):
    """Accuracy where there are labels, agreement with the float model, and error of the logits."""
    found = {}
    for name, each in measured.items():
        if each[0][1] is not None:
            marks = torch.cat([labels for _, labels in each])
            found[f"accuracy, {name}"] = float((logits[name].argmax(-1) == marks).double().mean())
        same = logits[name].argmax(-1) == true[name].argmax(-1)
        found[f"same class, {name}"] = float(same.double().mean())
        found[f"error, {name}"] = float(relative(logits[name], true[name])) ** 0.5
    return found
