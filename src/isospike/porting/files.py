"""A ported model as a folder: safetensors and JSON, written whole or not at all."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from isospike.errors import InputError, IsospikeError, first_sentence
from isospike.hf.hub import fetch_folder
from isospike.hf.load import wrap_foreign_errors
from isospike.porting.fingerprint import check_fingerprint, saved_rows, take_fingerprint
from isospike.porting.packing import is_packed, packed, packed_forms, unpacked
from isospike.porting.ported import Ported
from isospike.porting.run import Mode, Origin, run_of
from isospike.porting.saturation import saturation_of
from isospike.porting.saving import own_saving
from isospike.porting.skeleton import (
    built,
    check_header,
    check_room,
    config_of,
    keep_buffers,
    keeping_rng,
    like,
    own_buffers,
    with_recipe,
    without_dropped,
)
from isospike.porting.spec import PROBE, PortSpec, changed_attributes, restore_attributes
from isospike.porting.tables import mark_tables
from isospike.report.files import Content, Snapshot, open_folder

MODEL_TYPE = "isospike"
"""In config.json, so that nothing else takes the folder for a model of numbers."""

CONFIG, ANSWERS = "config.json", "answers.safetensors"
WEIGHTS = "isospike.safetensors"
"""The file of the weights; of those of a larger port the first, the others numbered."""
GENERATION, CARD = "generation_config.json", "README.md"

_SHARD_BYTES = 2**29  # of one file of weights, about
_SPARE_BYTES = 2**28  # of buffers that no file holds, such as positions
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

# --------------------------------------------------------------------------- save


def port_files(ported: nn.Module, tokenizer: Any = None) -> dict[str, Content]:
    """The files of a port: configuration, weights, answers on some rows, model card, tokenizer.

    Args:
        ported: The ported model.
        tokenizer: Of transformers; None for none.

    Returns:
        What each file holds, by name.
    """
    from safetensors.torch import save

    config = config_of(ported)
    words = _tokenizer_files(tokenizer)
    run = Ported.of(ported).run
    answers, about = take_fingerprint(Ported.of(ported), run.origin.rows)
    keep_buffers(ported)  # a forward may have replaced some
    spec = PortSpec.of(Ported.of(ported), reads_probe(tokenizer))
    spec, fresh = with_recipe(spec, config, ported, run.mode)
    spec = replace(
        spec,
        attributes=changed_attributes(ported, fresh),
        layers={} if fresh is not None else dict(run.origin.layers),
    )
    if config:
        config["architectures"] = [type(ported).__name__]  # transformers looks for it
    described = {"model_type": MODEL_TYPE, "isospike": asdict(spec), "model": config}
    files: dict[str, Content] = {
        **words,
        CONFIG: json.dumps(described, indent=1),
        **_weight_files(ported, spec),
        ANSWERS: save(answers, metadata={"isospike": about}),
    }
    if run.origin.card:
        files[CARD] = run.origin.card
    generation = getattr(ported, "generation_config", None)
    if generation is not None:
        files[GENERATION] = generation.to_json_string()
    return files


def _weight_files(model: nn.Module, spec: PortSpec) -> dict[str, Content]:
    """The weights, each once, in files of a bounded size. A buffer of a port's module is its own
    even where modules share one: loaded, they do not."""
    shards: list[dict[str, Tensor]] = [{}]
    known: set[object] = set()
    own = own_buffers(model)
    size = 0
    for name, tensor in model.state_dict().items():
        key: object = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if name in own:
            key = own[name]
        if key in known and tensor.numel():
            continue
        known.add(key)
        if size and size + tensor.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return {_shard(i): partial(_write_shard, model, spec, shard) for i, shard in enumerate(shards)}


def _shard(number: int) -> str:
    return f"{Path(WEIGHTS).stem}-{number + 1}.safetensors" if number else WEIGHTS


def _write_shard(
    model: nn.Module, spec: PortSpec, tensors: Mapping[str, Tensor], path: Path
) -> None:
    from safetensors.torch import save_file

    places: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        if is_packed(name, spec):
            alone[name] = packed(name, tensor, model, spec)
            continue
        place = tensor.untyped_storage().data_ptr()
        shares = place in places or tensor.untyped_storage().nbytes() != tensor.nbytes
        alone[name] = tensor.contiguous().clone() if shares else tensor.contiguous()
        places.add(place)
    save_file(alone, str(path))


def _tokenizer_files(tokenizer: Any) -> dict[str, Content]:
    """What a tokenizer of transformers saves; nothing for None."""
    if tokenizer is None:
        return {}
    with TemporaryDirectory(prefix="isospike-") as scratch:
        tokenizer.save_pretrained(scratch)
        return {p.name: p.read_bytes() for p in sorted(Path(scratch).iterdir()) if p.is_file()}


def reads_probe(tokenizer: Any) -> list[int]:
    """The tokens of :data:`isospike.porting.spec.PROBE` and the size of the vocabulary, which may
    not know the probe; none for what reads no text alone.

    Args:
        tokenizer: Of transformers; None for none.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return []
    with wrap_foreign_errors("save needs a tokenizer that reads text", "Save it by itself."):
        read = tokenizer(PROBE, verbose=False)["input_ids"]
        return [*(int(token) for token in read), int(tokenizer.vocab_size)]


# --------------------------------------------------------------------------- load


def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    execution: str | None = None,
    precision: str | None = None,
    revision: str | None = None,
) -> nn.Module:
    """The ported model saved in a folder or on the Hugging Face hub, ready to call.

    Every file is compared with its digest, every value checked, and what the port answers on a long
    and a short row is compared with what it answered when it was saved.

    A model of transformers is built of its configuration. So is one whose class is the user's own,
    once the module of that class is imported: nothing is imported because a file names it. Any
    other model is given as new, as ``model``; its weights are those of the file.

    Args:
        path: Folder written by :meth:`Port.save` or ``save_pretrained``, or a name on the hub.
        model: A float model of the class and the sizes that were ported, which is not changed;
            needed where no configuration builds it, as for plain PyTorch.
        execution: ``collapsed`` or ``stepped``; as saved if None.
        precision: ``exact`` or ``fast``; as saved if None.
        revision: On the hub: branch, tag or commit; ``main`` if None.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: No port is there, the hub cannot be reached, its files are damaged, or ``model``
            is another one.
        UnsupportedError: The model must be given, or its class is not imported.

    >>> import isospike, tempfile, torch
    >>> layer, x = torch.nn.Linear(4, 2), torch.rand(8, 4)
    >>> folder = tempfile.mkdtemp()
    >>> port = isospike.port(layer, [{"input": x}] * 4)
    >>> _ = port.save(folder)
    >>> torch.equal(load(folder, torch.nn.Linear(4, 2))(x), port.model(x))
    True
    """
    with open_folder(fetch_folder("load", path, revision=revision)) as snapshot:
        return load_from(snapshot, execution, precision, model)


def load_from(
    snapshot: Snapshot,
    execution: str | None = None,
    precision: str | None = None,
    given: nn.Module | None = None,
) -> nn.Module:
    """The same out of an open folder.

    Args:
        snapshot: The folder.
        execution: See :func:`load`.
        precision: likewise.
        given: likewise, its ``model``.

    Raises:
        IsospikeError: As :func:`load`.
    """
    spec, plain = read_config(snapshot)
    mode = Mode(execution or spec.execution, precision or spec.precision, spec.nonlinear)
    with _told(snapshot.path):
        linear = [s for s in spec.sites.values() if s.kind in ("linear", "conv")]
        levels = [_code_of(site).levels for site in linear]
    mode.check("load", max(levels, default=0))
    with _told(snapshot.path):
        model = _rebuilt(snapshot, spec, plain, mode, given)
        restore_attributes(model, spec.attributes)
        if GENERATION in snapshot.digests:
            from transformers import GenerationConfig

            text = json.loads(snapshot.read(GENERATION))
            model.generation_config = GenerationConfig.from_dict(without_dropped(text))
        from safetensors import safe_open

        with safe_open(snapshot.place(ANSWERS), "pt") as file:
            answers = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            about = file.metadata()["isospike"]
        check_fingerprint(Ported.of(model), answers, about)
        card = ""
        with contextlib.suppress(InputError):  # the user's own by now
            card = snapshot.read(CARD).decode()
        run_of(model).origin = Origin(saved_rows(answers, about), spec.layers, card)
    saturation_of(model).reset()
    own_saving(model, port_files)
    return model


def read_config(snapshot: Snapshot) -> tuple[PortSpec, dict[str, Any]]:
    """What config.json says of a port, and the configuration of its model.

    Args:
        snapshot: Its folder.

    Raises:
        InputError: It is damaged, or not that of a port.
        UnsupportedError: It is of another format.
    """
    try:
        described = json.loads(snapshot.read(CONFIG))
    except (ValueError, RecursionError) as error:
        if isinstance(error, IsospikeError):
            raise
        raise _damaged(snapshot.path, error) from error
    if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
        raise InputError(
            f"load needs a folder that isospike saved a port in, got {snapshot.path}, which holds "
            "something else. Port a model first."
        )
    with _told(snapshot.path):
        return PortSpec.read(described.get("isospike")), without_dropped(described["model"])


def _rebuilt(
    snapshot: Snapshot,
    spec: PortSpec,
    plain: dict[str, Any],
    mode: Mode,
    given: nn.Module | None,
) -> nn.Module:
    """The model with its weights, built only once they are known to fit."""
    from safetensors import safe_open

    header, sizes = {}, 0
    with contextlib.ExitStack() as stack:
        files = []
        for number in itertools.count():
            if number and _shard(number) not in snapshot.digests:
                break
            place = snapshot.place(_shard(number))
            sizes += place.stat().st_size
            files.append(file := stack.enter_context(safe_open(place, "pt")))
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                header[name] = tuple(part.get_shape()), _TYPES.get(part.get_dtype())
        if given is None:
            check_room(spec, plain, header, _SPARE_BYTES + 8 * sizes)
            with keeping_rng():
                model = built(spec, plain, mode)
        else:
            model = like(spec, given, mode)
        check_header(model, header, packed_forms(model, spec), given is not None)
        mark_tables(model, spec.tables)
        late = [(file, n) for file in files for n in file.keys() if is_packed(n, spec)]  # noqa: SIM118
        for file in files:
            names = [n for n in file.keys() if not is_packed(n, spec)]  # noqa: SIM118
            _fill(model, {name: file.get_tensor(name) for name in names})
        for file, name in late:
            _fill(model, {name: unpacked(name, file.get_tensor(name), model, spec)})
    return model


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the tensors of a file, which fit."""
    own, free = model.state_dict(keep_vars=True), own_buffers(model)
    for name, tensor in tensors.items():
        if isinstance(own[name], nn.Parameter) and tensor.is_floating_point():
            if not bool(tensor.isfinite().all()):
                raise InputError(
                    f"load needs finite weights, got NaN or infinity in {name}. Save the port "
                    "again."
                )
        if name in free:
            module, leaf = free[name]
            module._buffers[leaf] = tensor.clone()
        else:
            own[name].data.copy_(tensor)


def _code_of(site: Any) -> Any:
    from isospike import codes

    return codes.code(site.code, site.steps)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever a library says of a damaged file is one error of ours."""
    try:
        yield
    except IsospikeError as error:
        text = str(error)
        if str(path) in text:
            raise
        if text.startswith("load needs"):
            raise type(error)(text.replace(". ", f" in {path}. ", 1)) from error
        raise _damaged(path, error) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> InputError:
    kind = "" if isinstance(error, IsospikeError) else f"{type(error).__name__} "
    return InputError(
        f"load needs the files that isospike wrote, got {path}: {kind}{first_sentence(error)} "
        "Port the model again."
    )
