"""How a model's outputs become one embedding of a sentence, as sentence-transformers saves it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isospike.errors import InputError, UnsupportedError
from isospike.report.reading import MAX_BYTES, read_file

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_KEYS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_OF_MODULES = ("config.json", "model.safetensors")  # of sentence-transformers, beside the model
_PATH = re.compile(r"|[A-Za-z0-9_][\w.-]*")
_LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in "bert roberta distilbert camembert albert xlm-roberta xlnet".split()
)


@dataclass(frozen=True)
class Pooling:
    """How an embedding is made; every embedding is then scaled to length 1.

    Attributes:
        mode: One of :data:`MODES`.
        max_tokens: Most tokens that are read of a sentence; what the model reads if None.
        lower: Whether the text is put in lower case.
        further: What else sentence-transformers would do and this library cannot.
        files: The files of sentence-transformers that say so, by name.
    """

    mode: str = "mean"
    max_tokens: int | None = None
    lower: bool = False
    further: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def check(self) -> None:
        """Raise unless this library makes the embeddings of sentence-transformers.

        Raises:
            UnsupportedError: There is more to do, such as a Dense module.
        """
        if self.mode not in MODES or self.further:
            got = self.further[0] if self.further else f"the mode {self.mode!r}"
            raise UnsupportedError(
                f"embed needs a model whose embeddings are pooled by {', '.join(MODES)} and no "
                f"more, got {got}. Pool the outputs of the port yourself."
            )

    def saved(self) -> dict[str, bytes]:
        """Files with which sentence-transformers pools as this does; none for what it does anyway.

        They are those of the model, or else the fewest that say it.
        """
        if self.files or self == Pooling():
            return dict(self.files)
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(
                {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}.items()
            )
        ]
        pooling = {key: mode == self.mode for key, mode in _KEYS.items()}
        lengths = {"max_seq_length": self.max_tokens, "do_lower_case": self.lower}
        contents: dict[str, Any] = {
            "modules.json": modules, "1_Pooling/config.json": pooling, _LENGTHS[0]: lengths
        }  # fmt: skip
        return {name: json.dumps(content, indent=1).encode() for name, content in contents.items()}


def read_pooling(place: str) -> Pooling:
    """The pooling of a model that sentence-transformers saved; the mean for any other.

    Args:
        place: A folder, or a name on the Hugging Face hub.

    Returns:
        How it pools.

    Raises:
        InputError: A file is damaged.
    """
    files: dict[str, bytes] = {}
    modules = _read(place, "modules.json", files)
    if modules is None:
        return Pooling()
    further, mode = [], "mean"
    for module in modules:
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if not _PATH.fullmatch(path):
            raise _damaged("modules.json")
        if kind == "Pooling":
            mode = _mode(_read(place, f"{path}/config.json", files) or {})
        elif kind not in ("Transformer", "Normalize") or (kind == "Transformer" and path):
            further.append(f"the module {kind}")
            for name in _OF_MODULES:
                if (content := _bytes(place, f"{path}/{name}")) is not None:
                    files[f"{path}/{name}"] = content
    about = _read(place, "config_sentence_transformers.json", files) or {}
    if prompt := about.get("default_prompt_name"):
        further.append(f"the prompt {prompt!r}")
    found = (_read(place, name, files) for name in _LENGTHS)
    lengths: Any = next((given for given in found if given is not None), {})
    longest, lower = lengths.get("max_seq_length"), bool(lengths.get("do_lower_case"))
    return Pooling(mode, longest, lower, tuple(further), files)


def _mode(config: dict[str, Any]) -> str:
    chosen = config.get("pooling_mode") or [mode for key, mode in _KEYS.items() if config.get(key)]
    modes = [chosen] if isinstance(chosen, str) else list(chosen) or ["mean"]
    return " with ".join(map(str, modes))


def _read(place: str, name: str, files: dict[str, bytes]) -> Any:
    """The JSON of a file of the model, whose bytes are kept; None if it has no such file."""
    content = _bytes(place, name)
    if content is None:
        return None
    files[name] = content
    return _object(content, f"{place}/{name}", list if name == "modules.json" else dict)


def _bytes(place: str, name: str) -> bytes | None:
    path: Path | str | None = Path(place) / name
    if not Path(place).is_dir():
        from transformers.utils import cached_file

        path = cached_file(
            place, name, _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    if path is None or not Path(path).exists():
        return None
    return read_file(path, "embed", 2**20 if name.endswith(".json") else MAX_BYTES)


def _object(text: bytes, name: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    parts = value if kind is list and isinstance(value, list) else [value]
    if not isinstance(value, kind) or not all(isinstance(part, dict) for part in parts):
        raise _damaged(name)
    return value


def _damaged(name: str) -> InputError:
    return InputError(
        f"embed needs {name} as it was saved, got another content. Save the model again."
    )
