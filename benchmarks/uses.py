"""Uses of a port: what works with it, and what a refusal says. Small random models."""

import copy
import functools
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as P
from typing import Any

import torch
import transformers
from torch import nn

import isospike
from isospike.errors import IsospikeError, first_sentence
from isospike.experiments.study import Findings, Goal, study
from isospike.hf.batches import first_output
from isospike.report.table import Table

WORDS = [f"w{i}" for i in range(60)]
LINES = [" ".join(WORDS[i : i + 3 + i % 20]) for i in range(30)]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES = {"vocab_size": len(WORDS) + len(SPECIAL), "max_position_embeddings": 64}
ENCODER = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40
}  # fmt: skip
CONFIGS = {
    "Bert": ("BertConfig", {**SIZES, **ENCODER, "num_labels": 3}),
    "Llama": ("LlamaConfig", {
        **SIZES, **ENCODER, "num_key_value_heads": 3, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 3,
    }),
    "ViT": ("ViTConfig", {**ENCODER, "image_size": 16, "patch_size": 4, "num_labels": 3}),
}  # fmt: skip

Use = Callable[[], float]
USES: dict[str, tuple[str, str, Use]] = {}
"""Group, the words of a refusal (empty if it works), and a function that returns how far what it
gives is from what the port gives when it is called, by name."""


def use(group: str, name: str, refusal: str = "") -> Callable[[Use], Use]:
    """Register a use."""

    def register(function: Use) -> Use:
        USES[name] = group, refusal, function
        return function

    return register


def tokenizer() -> Any:
    """One token a word; a new one each time, since a pipeline sets the side that it pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    raw = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", eos_token="[SEP]", mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def texts(lines: list[str]) -> dict[str, torch.Tensor]:
    """One padded batch."""
    tokens = tokenizer()(lines, padding=True, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def pixels(count: int = 8) -> dict[str, torch.Tensor]:
    """Random images."""
    draw = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(count, 3, 16, 16, generator=draw)}


@functools.cache
def float_model(kind: str) -> Any:
    """A random model of transformers, with weights as wide as a trained one's."""
    name, sizes = next(found for start, found in CONFIGS.items() if kind.startswith(start))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, name)(**sizes)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.15)
    return model


@functools.cache
def port(kind: str = "BertModel") -> Any:
    """Its port, which nobody changes."""
    inputs = pixels() if kind.startswith("ViT") else texts(LINES)
    return isospike.port(float_model(kind), [inputs], steps=6)


_HOME = tempfile.TemporaryDirectory(prefix="isospike-uses-")


@functools.cache
def folder(kind: str = "BertModel") -> str:
    """The port, saved with its tokenizer."""
    return str(port(kind).save(Path(_HOME.name) / kind, tokenizer()))


def fresh(kind: str = "BertModel") -> Any:
    """A copy of the port, to be changed."""
    return copy.deepcopy(port(kind).model)


def gap(got: Any, expected: Any) -> float:
    """Largest difference over the largest value."""
    x, y = (torch.as_tensor(v).detach().double() for v in (got, expected))
    return float((x - y).abs().max() / y.abs().max())


def output(model: Any, inputs: Any = None) -> torch.Tensor:
    """The first output."""
    with torch.no_grad():
        return first_output(model(**(texts(LINES[:4]) if inputs is None else inputs)))


def expected() -> torch.Tensor:
    """That of the port itself."""
    return output(port().model)


# ----------------------------------------------------------------------------- PyTorch


@use("PyTorch", "copy.deepcopy, pickle")
def _() -> float:
    return gap(output(pickle.loads(pickle.dumps(fresh()))), expected())  # noqa: S301 - our own


@use("PyTorch", "double()")
def _() -> float:
    return gap(output(fresh().double()), expected())


@use("PyTorch", "half()", "a port needs float32 or float64, got float16")
def _() -> float:
    return gap(output(fresh().half()), expected())


@use("PyTorch", "bfloat16()", "a port needs float32 or float64, got bfloat16")
def _() -> float:
    return gap(output(fresh().bfloat16()), expected())


@use("PyTorch", "autocast to bfloat16")
def _() -> float:
    with torch.autocast("cpu", torch.bfloat16):
        return gap(output(port().model), expected())


@use("PyTorch", "torch.compile")
def _() -> float:
    return gap(output(torch.compile(fresh(), backend="aot_eager")), expected())


@use("PyTorch", "torch.export")
def _() -> float:
    inputs = texts(LINES[:4])
    with torch.no_grad():
        exported = torch.export.export(fresh(), (), inputs, strict=False)
        return gap(first_output(exported.module()(**inputs)), expected())


@use("PyTorch", "a backward pass", "a port needs passes without a gradient")
def _() -> float:
    first_output(fresh().requires_grad_(True)(**texts(LINES[:4]))).sum().backward()
    return 0.0


# ------------------------------------------------------------------------ transformers


@use("transformers", "output_attentions=True")
def _() -> float:
    """The maps of the port against those of the float model: a port's error, not zero."""
    original = copy.deepcopy(float_model("BertModel"))
    original.set_attn_implementation("eager")
    with torch.no_grad():
        maps = port().model(**texts(LINES[:4]), output_attentions=True).attentions
        floats = original(**texts(LINES[:4]), output_attentions=True).attentions
    assert len(maps) == len(floats) == 2  # noqa: S101
    far = gap(torch.cat(maps), torch.cat(floats))
    return 0.0 if far < 0.1 else far


@use("transformers", "output_hidden_states=True")
def _() -> float:
    with torch.no_grad():
        states = port().model(**texts(LINES[:4]), output_hidden_states=True).hidden_states
    return gap(states[-1], expected())


@use("transformers", "AutoModel.from_pretrained, save_pretrained")
def _() -> float:
    port().model.save_pretrained(Path(_HOME.name) / "saved")
    return gap(
        output(transformers.AutoModel.from_pretrained(Path(_HOME.name) / "saved")), expected()
    )


@use("transformers", "quantization_config=IsospikeConfig(...)")
def _() -> float:
    place = Path(_HOME.name) / "float"
    float_model("BertModel").save_pretrained(place)
    how = isospike.IsospikeConfig(code="signed-digit", steps=6)
    model = transformers.AutoModel.from_pretrained(place, quantization_config=how)
    neutral = isospike.port(float_model("BertModel"), None, steps=6).model
    return gap(output(model), output(neutral))


@use("transformers", "generate with a cache")
def _() -> float:
    model, inputs = port("LlamaForCausalLM").model, texts(LINES[:1])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    rows = [model.generate(**inputs, **how, use_cache=cache) for cache in (True, False)]
    return gap(*rows)


@use("transformers", "Trainer.evaluate and its checkpoint")
def _() -> float:
    kind = "BertForSequenceClassification"
    rows = [{k: v[0] for k, v in texts([line]).items()} | {"labels": i % 3}
            for i, line in enumerate(LINES[:8])]  # fmt: skip
    place = Path(_HOME.name) / "trainer"
    how = transformers.TrainingArguments(
        output_dir=str(place), report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_eval_batch_size=1,
    )  # fmt: skip
    trainer = transformers.Trainer(model=fresh(kind), args=how, eval_dataset=rows)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    again = transformers.AutoModelForSequenceClassification.from_pretrained(place)
    with torch.no_grad():
        losses = [
            float(again(**{k: torch.as_tensor(v)[None] for k, v in row.items()}).loss)
            for row in rows
        ]
    return gap(loss, sum(losses) / len(losses))


PIPELINES = {
    "feature-extraction": ("BertModel", lambda out: torch.tensor(out)),
    "fill-mask": ("BertForMaskedLM", lambda out: torch.tensor([row["score"] for row in out])),
    "text-classification": ("BertForSequenceClassification", lambda out: out[0]["score"]),
    "token-classification": (
        "BertForTokenClassification", lambda out: torch.tensor([float(row["score"]) for row in out])
    ),
    "text-generation": (
        "LlamaForCausalLM", lambda out: torch.tensor([hash(out[0]["generated_text"]) % 2**20])
    ),
    "zero-shot-classification": (
        "BertForSequenceClassification", lambda out: torch.tensor(out["scores"])
    ),
}  # fmt: skip


def _through(task: str) -> float:
    kind, number = PIPELINES[task]
    text = "w1 [MASK] w3 w4" if task == "fill-mask" else "w1 w2 w3 w4"
    more: dict[str, Any] = (
        {"max_new_tokens": 5, "do_sample": False} if task == "text-generation" else {}
    )
    if task == "zero-shot-classification":
        more = {"candidate_labels": ["w5", "w6"], "hypothesis_template": "w9 {}"}
    by_folder = transformers.pipeline(task, model=folder(kind), device="cpu")
    by_hand = transformers.pipeline(
        task, model=port(kind).model, tokenizer=tokenizer(), device="cpu"
    )
    return gap(number(by_folder(text, **more)), number(by_hand(text, **more)))


for _task in PIPELINES:
    use("pipeline(model=folder)", _task)(functools.partial(_through, _task))


@use("pipeline(model=folder)", "image-classification")
def _() -> float:
    from PIL import Image

    kind = "ViTForImageClassification"
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    place = str(port(kind).save(Path(_HOME.name) / "images", processor))
    image = Image.new("RGB", (20, 20), (200, 10, 60))
    found = transformers.pipeline("image-classification", model=place, device="cpu")(image)
    inputs = processor(image, return_tensors="pt")
    return gap(found[0]["score"], output(port(kind).model, dict(inputs)).softmax(-1).max())


# ------------------------------------------------------------------------------ others


@use("sentence-transformers", "SentenceTransformer(folder), encode")
def _() -> float:
    from sentence_transformers import SentenceTransformer

    rows = SentenceTransformer(folder(), device="cpu").encode(LINES, normalize_embeddings=True)
    return gap(rows, isospike.embed(folder(), LINES))


@use("sentence-transformers", "its save, and isospike.embed of what it saved")
def _() -> float:
    from sentence_transformers import SentenceTransformer

    place = Path(_HOME.name) / "sentences"
    made = SentenceTransformer(folder(), device="cpu")
    made.save(str(place))
    again = SentenceTransformer(str(place), device="cpu").encode(LINES)
    length = isospike.embed(place, LINES)
    return max(gap(again, made.encode(LINES)), gap(length, isospike.embed(folder(), LINES)))


@use("sentence-transformers", "CrossEncoder(folder)")
def _() -> float:
    from sentence_transformers import CrossEncoder

    kind = "BertForSequenceClassification"
    pair = ("w1 w2 w3", "w4 w5")
    found = CrossEncoder(folder(kind), device="cpu").predict([pair])
    inputs = tokenizer()([pair[0]], [pair[1]], return_tensors="pt")
    return gap(found, output(port(kind).model, dict(inputs)))


@use("accelerate", "device_map with layers on the disk")
def _() -> float:
    layers = {"embeddings": "cpu", "encoder.layer.0": "cpu", "encoder.layer.1": "disk"}
    model = transformers.AutoModel.from_pretrained(
        folder(), device_map={**layers, "pooler": "cpu"}, offload_folder=f"{_HOME.name}/offload"
    )
    return gap(output(model), expected())


@use("accelerate", "cpu_offload")
def _() -> float:
    from accelerate import cpu_offload

    return gap(output(cpu_offload(fresh(), torch.device("cpu"))), expected())


@use("lm-eval", "--model hf --model_args pretrained=folder")
def _() -> float:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    kind, place = "LlamaForCausalLM", Path(_HOME.name) / "task"
    place.mkdir(exist_ok=True)
    lines = "\n".join(json.dumps({"text": line}) for line in stories())
    (place / "lines.jsonl").write_text(lines)
    (place / "lines.yaml").write_text(
        "task: lines\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {place}/lines.jsonl\ntest_split: test\noutput_type: loglikelihood_rolling\n"
        "doc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: word_perplexity\n"
    )
    tasks = TaskManager(include_path=str(place), include_defaults=False)
    runs = [
        {"model": "hf", "model_args": f"pretrained={folder(kind)},device=cpu"},
        {"model": HFLM(pretrained=port(kind).model, tokenizer=tokenizer(), device="cpu")},
    ]
    found = [
        simple_evaluate(tasks=["lines"], task_manager=tasks, bootstrap_iters=0, **run)["results"]
        for run in runs
    ]
    return gap(*(each["lines"]["word_perplexity,none"] for each in found))


@use("mteb", "a task of sentence similarity on SentenceTransformer(folder)")
def _() -> float:
    import mteb
    from datasets import load_dataset
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import pairwise_cos_sim

    rows = {"sentence1": LINES[:12], "sentence2": LINES[6:18], "score": [i % 5 for i in range(12)]}
    place = Path(_HOME.name) / "pairs.jsonl"
    pairs = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    place.write_text("\n".join(map(json.dumps, pairs)))

    class Similarity(AbsTaskSTS):  # type: ignore[misc]
        metadata = TaskMetadata(
            name="Lines", description="lines", reference=None, type="STS", category="t2t",
            modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="cosine_spearman", dataset={"path": "none/none", "revision": "0"},
        )  # fmt: skip
        min_score, max_score = 0, 4

        def load_data(self, *arguments: Any, **keywords: Any) -> None:
            self.dataset = load_dataset("json", data_files={"test": str(place)})
            self.data_loaded = True

    model = SentenceTransformer(folder(), device="cpu")
    result = mteb.evaluate(model, Similarity(), cache=None, co2_tracker=False)
    score = result.task_results[0].scores["test"][0]["cosine_spearman"]
    cosines = pairwise_cos_sim(*(isospike.embed(folder(), rows[f"sentence{i}"]) for i in (1, 2)))
    return gap(score, spearmanr(cosines, rows["score"]).statistic)


def stories() -> list[str]:
    """A few of TinyStories where the data is (its words are unknown, which does not matter)."""
    place = Path(os.environ.get("ISOSPIKE_DATA", "")) / "tinystories_sample/tinystories_sample.txt"
    if not place.is_file():
        return LINES[:6]
    found = place.read_text(encoding="utf-8").split("<|endoftext|>")
    return [" ".join(story.split()) for story in found if story.strip()][:20]


# ------------------------------------------------------------------------------- study


def outcome(name: str) -> tuple[str, str, float]:
    """What becomes of a use: a word, what is said, and the difference."""
    _, refusal, function = USES[name]
    try:
        far = function()
    except ImportError as error:
        return "not installed", str(error.name), 0.0
    except IsospikeError as error:
        as_told = bool(refusal) and str(error).startswith(refusal)
        return ("refused" if as_told else "fails"), first_sentence(error), 0.0
    except Exception as error:  # noqa: BLE001 - it is what is asked
        return "fails", f"{type(error).__name__}: {first_sentence(error)}", 0.0
    if refusal:
        return "fails", "no refusal", far
    return ("works", "", far) if far <= 1e-5 else ("differs", f"by {far:.2g} of the largest", far)


@study(
    "uses",
    question="What can be done with a port, and what is said where it cannot?",
    presets={
        "tiny": P(groups=("PyTorch",)),
        "small": P(groups=("PyTorch", "transformers")),
        "full": P(groups=tuple(dict.fromkeys(group for group, _, _ in USES.values()))),
    },
)
def uses(p, ctx):
    """Every use of the groups."""
    chosen = {name: group for name, (group, _, _) in USES.items() if group in p.groups}
    found = {name: outcome(name) for name in chosen}
    rows = tuple((group, name, *found[name][:2]) for name, group in chosen.items())
    table = Table(
        "Uses of a port", ("with", "use", "outcome", "what is said"), rows,
        "A use works if it gives what the port gives when it is called, to rounding.",
    )  # fmt: skip
    bad = sum(word in ("fails", "differs") for word, _, _ in found.values())
    return Findings(
        {"uses": len(found), "fail or differ": bad,
         "not installed": sum(word == "not installed" for word, _, _ in found.values())},
        [table], {"fail or differ": Goal(bad, 0)},
    )  # fmt: skip
