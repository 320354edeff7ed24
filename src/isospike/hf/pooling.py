"""How a model's outputs become one embedding of a sentence, as sentence-transformers saves it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isospike.errors import InputError, UnsupportedError
from isospike.report.reading import read_file

FILE = "pooling.json"
"""What a port keeps a pooling in."""

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_KEYS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
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
    """

    mode: str = "mean"
    max_tokens: int | None = None
    lower: bool = False
    further: tuple[str, ...] = ()

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

    def to_json(self) -> str:
        """The content of :data:`FILE`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: bytes | str, name: str) -> "Pooling":
        """What :meth:`to_json` gave.

        Args:
            text: The content of the file.
            name: Of the file, for the error.

        Raises:
            InputError: It is not such a content.
        """
        given = _object(text, name)
        with_tuple = {**given, "further": tuple(given.get("further", ()))}
        try:
            return cls(**with_tuple)
        except TypeError as error:
            raise InputError(
                f"embed needs a pooling that isospike saved, got {name}: {error}. Port the model "
                "again."
            ) from error


def read_pooling(place: str) -> Pooling:
    """The pooling of a model that sentence-transformers saved; the mean for any other.

    Args:
        place: A folder, or a name on the Hugging Face hub.

    Returns:
        How it pools.

    Raises:
        InputError: A file is damaged.
    """
    modules = _read(place, "modules.json")
    if modules is None:
        return Pooling()
    further, mode = [], "mean"
    for module in modules if isinstance(modules, list) else []:
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Pooling":
            mode = _mode(_read(place, f"{path}/config.json") or {})
        elif kind not in ("Transformer", "Normalize") or (kind == "Transformer" and path):
            further.append(f"the module {kind}")
    prompt = (_read(place, "config_sentence_transformers.json") or {}).get("default_prompt_name")
    if prompt:
        further.append(f"the prompt {prompt!r}")
    lengths: Any = next((found for n in _LENGTHS if (found := _read(place, n)) is not None), {})
    return Pooling(
        mode, lengths.get("max_seq_length"), bool(lengths.get("do_lower_case")), tuple(further)
    )


def _mode(config: dict[str, Any]) -> str:
    chosen = config.get("pooling_mode") or [mode for key, mode in _KEYS.items() if config.get(key)]
    modes = [chosen] if isinstance(chosen, str) else list(chosen) or ["mean"]
    return " with ".join(map(str, modes))


def _read(place: str, name: str) -> Any:
    """The JSON of a file of the model; None if it has no such file."""
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
    content = read_file(path, "embed", limit=2**20)
    return _object(content, str(path), list if name == "modules.json" else dict)


def _object(text: bytes | str, name: str, kind: type = dict) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    parts = value if kind is list and isinstance(value, list) else [value]
    if not isinstance(value, kind) or not all(isinstance(part, dict) for part in parts):
        raise InputError(
            f"embed needs {name} as it was saved, got another content. Save the model again."
        )
    return value
