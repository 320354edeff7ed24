"""Sentences judged by a float model, by its port, and by SpikingBERTs that learnt from it.

The presets ``tiny`` have random models and tokens.
"""

import json
import random
from types import SimpleNamespace as P

import torch
import transformers

import isospike
from benchmarks.models import minilm_path
from benchmarks.trained import (
    SST,
    batches,
    descend,
    fine_tuned,
    logits_of,
    random_texts,
    read_labelled,
)
from isospike.experiments.study import Findings, Goal, study
from isospike.models import SpikingBert
from isospike.progress import update
from isospike.report.files import write_file
from isospike.report.table import Table
from isospike.train import distil, spiking_student

PORTED = (8, 6, 4)  # steps
POINTS = 0.005  # that a port may be below the float model
ASKED = 0.84
SPIKES = 57_466  # of a token, of the port at T=8: the study sst2


def texts(p, ctx):
    """A float classifier of MiniLM; batches to train on, to calibrate with, and to judge by."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path())
    labels, train = read_labelled(ctx.file(SST[0]))
    training = batches(tokenizer, train, labels, size=16)
    marks, dev = read_labelled(ctx.file(SST[1]))
    chosen = random.Random(0).sample(train, p.sentences)
    calibration = [batch for batch, _ in batches(tokenizer, chosen)]
    model = fine_tuned(p, ctx.folder / f"sst-minilm-{p.tuned}-whole", training, frozen=0)
    return model, training, calibration, batches(tokenizer, dev, marks)[:: p.thin]


def tiny_texts():
    """The same of a random model."""
    model, made = random_texts()
    return model, made.training, made.calibration, made.measured["SST-2 dev"]


def learnt(p, ctx, model, training, calibration, name="sst-spiking-bert", **settings):
    """The student before and after it is trained to give the teacher's states and answers."""
    fresh, maps = spiking_student(model, calibration, p.layers, **settings)
    folder = ctx.folder / f"{name}-{p.count}"
    done = folder / "trained.json"
    if done.exists():
        seconds = json.loads(done.read_bytes())["cpu_seconds"]
        return fresh, SpikingBert.from_pretrained(folder).eval(), seconds
    student, _ = spiking_student(model, calibration, p.layers, **settings)
    student.bert.embeddings.word_embeddings.requires_grad_(False)
    places = [0, *(n + 1 for n in p.layers)]

    def loss(batch, labels):
        with torch.no_grad():
            wanted = model(**batch, output_hidden_states=True)
        got = student(batch["input_ids"], batch["attention_mask"])
        states = [wanted.hidden_states[i] for i in places]
        return distil((got.logits, got.hidden_states), (wanted.logits, states), maps,
                      mask=batch["attention_mask"]).loss  # fmt: skip

    both = torch.nn.ModuleList([student, maps])
    seconds = descend(both, training, p.count, p.rate, loss, "train the student")
    if p.sentences is not None:
        student.save_pretrained(folder)
        write_file(done, json.dumps({"cpu_seconds": seconds}).encode())
    return fresh, student, seconds


@torch.inference_mode()
def spiking(student, judged, steps):
    """Logits of a run on spikes, and the spikes of all its sentences."""
    logits, spikes = [], 0.0
    for i, (batch, _) in enumerate(judged):
        update(f"{steps} steps", i, len(judged))
        found = student(batch["input_ids"], batch["attention_mask"], steps=steps)
        logits.append(found.logits)
        spikes += float(found.spikes.sum())
    return torch.cat(logits), spikes


class Scores:
    """Rows of a table and numbers of a study, one for each way to judge the sentences."""

    def __init__(self, judged):
        self.marks = torch.cat([labels for _, labels in judged])
        self.count = len(self.marks)
        self.tokens = sum(int(batch["attention_mask"].sum()) for batch, _ in judged)
        self.rows, self.numbers = [], {}

    def add(self, way, logits, spikes):
        """Note a way; its share of right answers."""
        right = float((logits.argmax(-1) == self.marks).double().mean())
        self.numbers[f"accuracy, {way}"] = right
        held = ("", "")
        if spikes is not None:
            each, token = spikes / self.count, spikes / self.tokens
            self.numbers[f"spikes of a sentence, {way}"] = each
            self.numbers[f"spikes of a token, {way}"] = token
            held = (f"{each:,.0f}", f"{token:,.0f}")
        self.rows.append((way, f"{right:.2%}", *held))
        return right


@study(
    "sst2",
    question="How well are sentences of SST-2 judged on spikes, by a port of the float model and "
    "by a SpikingBERT of four layers that is distilled from it?",
    data=SST,
    extra="demo",
    presets={
        "tiny": P(sentences=None, layers=(1,), count=4, rate=1e-3, steps=12),
        "small": P(
            sentences=64, layers=(0, 2, 3, 5), tuned=60, count=40, rate=1e-4, steps=20, thin=8
        ),
        "full": P(
            sentences=256, layers=(0, 2, 3, 5), tuned=1000, count=600, rate=1e-4, steps=100, thin=1
        ),
    },
)
def sst2(p, ctx):
    """all-MiniLM-L6-v2 with a classifier, fine-tuned, and what is made of it, judged on the dev
    part's sentences."""
    given = tiny_texts() if p.sentences is None else texts(p, ctx)
    model, training, calibration, judged = given
    scores = Scores(judged)
    rows, numbers, add = scores.rows, scores.numbers, scores.add

    def logits(each):
        return logits_of(each, {"dev": judged})["dev"]

    best = add("float32", logits(model), None)
    evaluation = [batch for batch, _ in judged]
    for steps in PORTED:
        ported = isospike.port(model, calibration, steps=steps, evaluation=evaluation)
        add(f"port, T={steps}", logits(ported.model), ported.report.spikes * scores.count)
    fresh, student, seconds = learnt(p, ctx, model, training, calibration)
    numbers["minutes of training"] = seconds / 60
    add("SpikingBERT, clamped, not trained", logits(fresh), None)
    add("SpikingBERT, clamped", logits(student), None)
    once = spiking(student, judged[:1], 4)[1] / int(judged[0][0]["attention_mask"].sum()) / 4
    equal = max(1, round(numbers[f"spikes of a token, port, T={PORTED[0]}"] / once))
    for steps in (equal, p.steps):
        add(f"SpikingBERT, T={steps}", *spiking(student, judged, steps))
    numbers["steps at equal spikes"] = equal
    head = ("model", "right", "spikes/sentence", "spikes/token")
    meaning = (
        f"{scores.count} sentences. The port has six layers; the SpikingBERT has four of them and "
        f"is trained for some minutes; at T={equal} it has the spikes of the port at T={PORTED[0]}."
    )
    goals = {}
    if p.sentences is not None:
        below = best - numbers[f"accuracy, port, T={PORTED[0]}"]
        goals["port, share of the sentences lost"] = Goal(below, POINTS)
        goals["accuracy of the SpikingBERT"] = Goal(
            numbers[f"accuracy, SpikingBERT, T={p.steps}"], ASKED, at_least=True
        )
    return Findings(numbers, [Table("SST-2 on spikes", head, tuple(rows), meaning)], goals)


@study(
    "sst2-turns",
    question="How few steps does a SpikingBERT need whose populations fire in turns, whose "
    "shortcuts have weights, and whose training sees the rounding to whole spikes?",
    data=SST,
    extra="demo",
    presets={
        "tiny": P(
            sentences=None, layers=(1,), count=4, rate=1e-3, share=0.995, levels=4, turns=(8, 12),
            plain=4,
        ),
        "small": P(
            sentences=64, layers=(0, 2, 3, 5), tuned=60, count=40, rate=2e-4, share=0.995,
            levels=10, turns=(8, 16), plain=40, thin=8,
        ),
        "full": P(
            sentences=256, layers=(0, 2, 3, 5), tuned=1000, count=1200, rate=1e-4, share=0.9995,
            levels=10, turns=(8, 16, 100), plain=600, thin=1,
        ),
    },
)  # fmt: skip
def sst2_turns(p, ctx):
    """Four layers of the same fine-tuned MiniLM, distilled; at the last number of steps, the
    paper's, and at the most that have no more spikes than the port of ``sst2`` at 8."""
    given = tiny_texts() if p.sentences is None else texts(p, ctx)
    model, training, calibration, judged = given
    scores = Scores(judged)
    rows, numbers, add = scores.rows, scores.numbers, scores.add

    def clamped(each):
        each.config.levels = None
        return logits_of(each, {"dev": judged})["dev"]

    add("float32", logits_of(model, {"dev": judged})["dev"], None)
    fresh, student, seconds = learnt(
        p, ctx, model, training, calibration, "sst-spiking-bert-turns",
        share=p.share, shortcut_weights=True, levels=p.levels, turns=True,
    )  # fmt: skip
    numbers["minutes of training"] = seconds / 60
    for way, each in (("not trained, ", fresh), ("", student)):
        add(f"{way}clamped", clamped(each), None)
    first, *others = p.turns
    add(f"T={first}", *spiking(student, judged, first))
    once = numbers[f"spikes of a token, T={first}"] / first
    equal = max(1, int(SPIKES / once)) if p.sentences is not None else p.levels
    numbers["steps at equal spikes"] = equal
    for steps in sorted({equal, *others}):
        add(f"T={steps}", *spiking(student, judged, steps))
    add(f"not trained, T={equal}", *spiking(fresh, judged, equal))
    plain = P(**{**vars(p), "count": p.plain, "rate": 1e-4})  # the network of sst2
    student = learnt(plain, ctx, model, training, calibration)[1]
    student.config.turns = True
    add(f"as in sst2, T={others[-1]}", *spiking(student, judged, others[-1]))
    meaning = (
        f"{scores.count} sentences, four layers of six, trained for some minutes with rates of "
        f"{p.levels} steps. A population fires its T steps after the one before it has. "
        f"T={equal} has no more spikes than the port at T=8."
    )
    goals = {}
    if p.sentences is not None:
        for what, steps in {"at the paper's steps": max(p.turns), "at equal spikes": equal}.items():
            right = numbers[f"accuracy, T={steps}"]
            goals[f"accuracy {what}"] = Goal(right, ASKED, at_least=True)
        right = numbers[f"accuracy, as in sst2, T={others[-1]}"]
        goals["accuracy as in sst2, in turns"] = Goal(right, ASKED, at_least=True)
    head = ("SpikingBERT", "right", "spikes/sentence", "spikes/token")
    return Findings(numbers, [Table("SpikingBERT in turns", head, tuple(rows), meaning)], goals)
