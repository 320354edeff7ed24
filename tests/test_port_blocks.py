"""Ports made block by block, of models at hand a block at a time."""

import shutil
import tempfile
import threading

import models
import pytest
import torch
import transformers
from torch import nn

import isospike
from isospike.porting import offload as offloading
from isospike.porting.blocks import OutOfOrderError, by_block, find_blocks, in_step, part_of
from isospike.porting.discover import discover
from isospike.porting.offload import offload
from isospike.porting.run import Run
from isospike.porting.statistics import Sample

VOCAB = 64
SLOW = ("llama", "vit", "mixtral")


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def made(name):
    if name == "t5":
        config = transformers.T5Config(
            vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            decoder_start_token_id=0,
        )  # fmt: skip
        return models.seeded(lambda: models.scatter(transformers.T5Model(config))).eval()
    if name == "mixtral":
        config = transformers.MixtralConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=2,
            num_experts_per_tok=2,
        )  # fmt: skip
        return models.seeded(lambda: models.scatter(transformers.MixtralForCausalLM(config))).eval()
    return models.make(name)


def batches(name):
    if name in ("t5", "mixtral"):
        draw = torch.Generator().manual_seed(0)
        found = []
        for rows, length in ((4, 6), (3, 9), (2, 12), (3, 8)):
            ids = torch.randint(3, VOCAB, (rows, length), generator=draw)
            more = {"decoder_input_ids": ids[:, :4]} if name == "t5" else {}
            found.append({"input_ids": ids, **more})
        return found[:3], found[3:]
    one, other = models.batches(name)
    cut = len(next(iter(one.values()))) // 2
    return [{k: v[:cut] for k, v in one.items()}, {k: v[cut:] for k, v in one.items()}], [other]


def ported(model, name, **how):
    calibration, evaluation = batches(name)
    return isospike.port(model, calibration, evaluation=evaluation, steps=6, **how)


@pytest.fixture
def large(monkeypatch):
    """Weights of small models count as large."""
    monkeypatch.setattr(offloading, "SMALL", 100)


def same(one, other):
    """Both ports are the same to 1e-6."""
    a, b = one.model.state_dict(), other.model.state_dict()
    assert a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=1e-6, atol=1e-6)
    assert one.report.error == pytest.approx(other.report.error, rel=1e-6)
    assert one.report.steps_by_site == other.report.steps_by_site
    for x, y in zip(one.report.sites, other.report.sites, strict=True):
        assert (x.name, x.pca95, x.capped) == (y.name, y.pca95, y.capped)
        assert x.spikes == pytest.approx(y.spikes, rel=1e-6)
        assert x.error == pytest.approx(y.error, rel=1e-6)


# ------------------------------------------------------------------------- the blocks


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("bert", ["encoder.layer.0", "encoder.layer.1"]),
        ("t5", ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]),
        ("mixtral", ["model.layers.0", "model.layers.1"]),
    ],
)
def test_the_blocks_of_a_model_are_found_in_the_order_in_which_they_run(name, blocks):
    model, (calibration, _) = made(name), batches(name)
    found = discover(model, calibration[0]).blocks
    assert [b.removeprefix("bert.").removeprefix("model.bert.") for b in found] == blocks


def test_what_runs_twice_or_has_no_parts_is_no_block():
    layer = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))])
    assert find_blocks(model) == ("0", "1")
    assert find_blocks(model, {"1": 1, "0": 1}) == ("1", "0")
    assert find_blocks(model, {"0": 2, "1": 2}) == ()
    assert find_blocks(layer) == find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ()


def test_the_part_of_a_module_is_told_by_whole_names():
    blocks = ("layer.1", "layer.10")
    assert part_of("layer.10.dense", blocks) == "layer.10"
    assert part_of("layer.1:linear", blocks) == "layer.1"
    assert part_of("layer.100.dense", blocks) == part_of("head", blocks) == ""


class Stack(nn.Module):
    """Two blocks; ``order`` says which comes first, and ``seen`` who ran."""

    def __init__(self, seen):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Identity()) for _ in range(2))
        self.seen = seen

    def forward(self, name, order=(0, 1), fail=False):
        for number in order:
            self.blocks[number](torch.zeros(1))
            self.seen.append((name, number, float(torch.rand(()))))
            if fail:
                raise ValueError(name)


def test_all_passes_run_through_a_block_before_any_runs_through_the_next():
    seen, left = [], []
    model = Stack(seen)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    passes = [lambda name=name: model(name) for name in "abc"]
    in_step([Run()], [(each,) for each in model.blocks], passes, left.append)
    assert [(n, b) for n, b, _ in seen] == [(n, b) for b in (0, 1) for n in "abc"]
    assert left == [0, 1]
    # Each has the random numbers that it has alone.
    assert len({r for *_, r in seen}) == 2
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_a_pass_that_fails_ends_the_others():
    model = Stack([])
    threads = threading.active_count()
    passes = [lambda: model("a"), lambda: model("b", fail=True), lambda: model("c")]
    with pytest.raises(ValueError, match="b"):
        in_step([Run()], [(each,) for each in model.blocks], passes)
    assert threading.active_count() == threads


def test_passes_that_run_the_blocks_in_different_orders_run_without_blocks():
    model = Stack([])
    passes = [lambda: model("a"), lambda: model("b", order=(1, 0))]

    def work(blocks):
        in_step([Run()], [(model.get_submodule(name),) for name in blocks], passes)
        return len(blocks)

    with pytest.raises(OutOfOrderError):
        work(["blocks.0", "blocks.1"])
    assert by_block(["blocks.0", "blocks.1"], work) == 0


def test_the_rows_kept_of_a_batch_depend_on_it_and_on_the_tokens_before_it():
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, generator=draw) for n in (3000, 1000, 2000)]
    whole, turned = Sample(), Sample()
    for sample, order in ((whole, (0, 1, 2)), (turned, (2, 0, 1))):
        for number in order:
            before = sum(len(p) for p in parts[:number]) / len(parts[number])
            sample.add(parts[number], number, before, 6000 / len(parts[number]))
    assert torch.equal(whole.rows, turned.rows)
    assert torch.equal(whole.extremes, turned.extremes)
    once = Sample()
    once.add(torch.cat(parts), 0, 0.0, 1.0)
    assert torch.equal(whole.rows, once.rows)


# ------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", ["bert", "t5", *map(slow, SLOW)])
def test_a_port_made_block_by_block_is_the_port_made_at_once(name, monkeypatch):
    by_blocks = ported(made(name), name)
    monkeypatch.setattr("isospike.porting.discover.find_blocks", lambda *_: ())
    same(by_blocks, ported(made(name), name))


@pytest.mark.parametrize("name", ["bert", *map(slow, ("t5", *SLOW))])
def test_a_port_of_an_offloaded_model_is_that_of_the_model(name, large, tmp_path):
    model = made(name)
    one, other = ported(offload(model, tmp_path), name), ported(model, name)
    same(one, other)
    assert list(tmp_path.iterdir()) == []
    calibration, _ = batches(name)
    with torch.no_grad():
        again = other.model(**calibration[0])[0]
        torch.testing.assert_close(one.model(**calibration[0])[0], again)


def test_weights_keep_their_type_until_they_are_at_hand(large):
    model = made("llama").bfloat16()
    one = ported(offload(model), "llama")
    assert next(model.parameters()).dtype == torch.bfloat16
    same(one, ported(made("llama").bfloat16().float(), "llama"))


def test_one_block_at_a_time_has_memory(large):
    model = offload(made("bert"))
    shelf = offloading.shelf_of(model)
    sizes = []
    for block in [m for n, m in model.named_modules() if n in find_blocks(model)]:
        block.register_forward_hook(lambda *_: sizes.append(len(shelf.present)))
    (batch, _), _ = batches("bert")
    with torch.no_grad():
        model(**batch)
    assert sizes == [2, 2]  # it, and what is in no block


@pytest.mark.slow
def test_functions_of_an_offloaded_model_run_on_spikes(large):
    model = made("llama")
    one = ported(offload(model), "llama", functions="spiking")
    same(one, ported(model, "llama", functions="spiking"))


@pytest.mark.slow
def test_steps_for_an_error_are_found_for_an_offloaded_model(large):
    model, target = made("bert"), isospike.Target(0.1)
    calibration, evaluation = batches("bert")
    one, other = (
        isospike.port(m, calibration, evaluation=evaluation, steps=target)
        for m in (offload(model), model)
    )
    assert one.report.steps == other.report.steps
    assert one.report.error == pytest.approx(other.report.error, rel=1e-6)


# ----------------------------------------------------------------------------- accelerate


@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_a_model_that_accelerate_has_offloaded_is_ported(where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, float_model = made("llama"), made("llama")
    if where == "disk":
        accelerate.disk_offload(model, tmp_path / "offload", execution_device="cpu")
    else:
        accelerate.cpu_offload(model, execution_device="cpu")
    assert any(p.is_meta for p in model.parameters())
    same(ported(model, "llama"), ported(float_model, "llama"))
    assert any(p.is_meta for p in model.parameters())


def test_a_folder_that_transformers_maps_to_disk_is_ported(tmp_path):
    pytest.importorskip("accelerate")
    model = made("llama")
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
              "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert any(p.is_meta for p in loaded.parameters())
    same(ported(loaded, "llama"), ported(model, "llama"))


# ---------------------------------------------------------------------------------- files


def test_an_offloaded_port_is_saved_in_shards_and_loaded(large, tmp_path, monkeypatch):
    monkeypatch.setattr("isospike.porting.files._SHARD_BYTES", 20_000)
    one = ported(offload(made("llama"), tmp_path / "work"), "llama")
    folder = one.save(tmp_path / "port")
    assert len(list(folder.glob("isospike*.safetensors"))) > 2
    (batch, _), _ = batches("llama")
    loaded = isospike.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, one.model(**batch).logits)
    last = sorted(folder.glob("isospike-*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-40])
    with pytest.raises(isospike.InputError, match="as it was saved"):
        isospike.load(folder)
    last.unlink()
    with pytest.raises(isospike.InputError, match="a folder without it"):
        isospike.load(folder)


# ------------------------------------------------------------------------------ bad inputs


def test_a_disk_that_is_too_small_for_the_weights_is_named_before_the_work(large, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(isospike.InputError, match=r"GiB in .* got 0.0 GiB free"):
            offload(made("bert"), tmp_path)


def test_a_disk_that_fills_while_weights_are_written_is_one_line(large, tmp_path, monkeypatch):
    model = offload(made("bert"), tmp_path / "work")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    threads = threading.active_count()
    with pytest.raises(isospike.InputError, match=r"port needs to write weights to .* a full disk"):
        ported(model, "bert")
    assert threading.active_count() == threads
    assert list((tmp_path / "work").iterdir()) == []


def test_a_weight_without_values_is_named(large):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(20, 20))
    with pytest.raises(isospike.InputError, match=r"got 0.weight without values"):
        offload(model)


def test_a_wrong_weight_of_an_offloaded_model_is_named(large):
    model = made("bert")
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "layer.1" in n and p.dim() == 2)[0, 0] = (
            torch.nan
        )
    with pytest.raises(isospike.InputError, match=r"NaN or infinity in .*layer.1"):
        ported(offload(model), "bert")
