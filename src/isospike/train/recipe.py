"""What makes a trained model again: a file ``recipe.toml`` beside it."""

import json
import sys
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from isospike.errors import InputError, RangeError
from isospike.report.reading import read_file

MOST = 10**9
NUMBERS: dict[str, tuple[Any, float, float]] = {  # type, least and greatest value
    "epochs": (int | float, 1, MOST), "batch": (int, 1, MOST), "steps": (int, 1, MOST),
    "rate": (int | float, 0, sys.float_info.max), "decay": (int | float, 0, MOST),
    "warmup": (int | float, 0, 1), "smoothing": (int | float, 0, 1),
    "shift": (int, 0, MOST), "clamped": (int | float, 0, 1), "seed": (int, 0, 2**32 - 1),
}  # fmt: skip
OPTIMISERS = ("sgd", "adamw", "muon")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        model: Type of its configuration, such as ``isospike-integer-net``.
        config: What is set in its configuration.
        epochs: Passes over the training data.
        batch: Images of one step of the optimiser, over all processes.
        optimiser: ``sgd`` (momentum .9, Nesterov), ``adamw``, or ``muon``, where convolutions are
            normalised (:mod:`isospike.train.muon`).
        rate: The largest learning rate.
        warmup: Share of the steps in which the rate rises to it; then it falls to 0 in a line.
        decay: Weight decay, of weights that multiply.
        smoothing: Of labels.
        shift: Pixels by which an image is moved at most; None for no variation.
        flip: Whether images are mirrored in every other epoch.
        steps: Time steps of the model, and frames of a recording.
        clamped: Share of the optimiser's steps, from the first, in which neurons of integers give
            what they round in the others.
        seed: Of all random draws.

    >>> Recipe("isospike-integer-net", epochs=3).toml().splitlines()[0]
    'model = "isospike-integer-net"'
    """

    model: str
    config: dict[str, Any] = field(default_factory=dict)
    epochs: int | float = 10
    batch: int = 128
    optimiser: str = "sgd"
    rate: float = 0.1
    warmup: float = 0.2
    decay: float = 5e-4
    smoothing: float = 0.1
    shift: int | None = 2
    flip: bool = True
    steps: int = 4
    clamped: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raise unless a training can follow this.

        Raises:
            RangeError: A number is out of range.
            InputError: The optimiser is unknown, or something is no number that is to be one.
        """
        for name, (kind, least, most) in NUMBERS.items():
            value = getattr(self, name)
            if name == "shift" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kind):
                what = "a whole number" if kind is int else "a number"
                raise InputError(
                    f"train needs {what} for {name}, got {value!r}. Correct it in the recipe."
                )
            if not least <= value <= most:
                raise RangeError(
                    f"train needs {name} from {least:g} to {most:g}, got {value}. Correct it."
                )
        if not self.rate > 0:
            raise RangeError(f"train needs rate above 0, got {self.rate}. Use 0.1.")
        if not isinstance(self.flip, bool) or not isinstance(self.config, dict):
            wrong = "flip" if not isinstance(self.flip, bool) else "config"
            raise InputError(
                f"train needs {'true or false' if wrong == 'flip' else 'a table'} for {wrong}, got "
                f"{getattr(self, wrong)!r}. Correct it in the recipe."
            )
        if self.optimiser not in OPTIMISERS:
            raise InputError(
                f"train needs an optimiser of {', '.join(OPTIMISERS)}, got {self.optimiser!r}. "
                "Choose one."
            )

    def toml(self) -> str:
        """The text of ``recipe.toml``, which :func:`read_recipe` reads."""
        plain = {k: v for k, v in asdict(self).items() if v is not None and k != "config"}
        lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
        lines += ["", "[config]"]
        lines += [f"{k} = {json.dumps(v)}" for k, v in self.config.items() if v is not None]
        return "\n".join(lines) + "\n"


def read_recipe(path: str | Path) -> Recipe:
    """Read a ``recipe.toml``.

    Args:
        path: The file.

    Returns:
        The recipe.

    Raises:
        InputError: There is no such file, or it is no recipe.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "recipe.toml"
    >>> _ = path.write_text(Recipe("isospike-integer-net", epochs=3).toml())
    >>> read_recipe(path).epochs
    3
    """
    try:
        values = tomllib.loads(read_file(path, "read_recipe").decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"read_recipe needs a TOML file, got {str(path)!r} ({error}). Correct it there."
        ) from None
    known = {f.name for f in fields(Recipe)}
    unknown = sorted(values.keys() - known)
    if unknown or "model" not in values:
        wrong = unknown[0] if unknown else "no model"
        raise InputError(
            f"read_recipe needs a model and names that it knows, got {wrong!r} in "
            f"{str(path)!r}. Use {', '.join(sorted(known))}."
        )
    return Recipe(**{"shift": None, **values})


FOUR = {"channels": 96, "depths": [1, 1, 2], "heads": [8, 8, 8], "expansion": 2}
POOLED = {
    "form": "imagenet", "channels": 160, "depths": [1, 1, 1], "heads": [4, 4, 4], "expansion": 2,
    "levels": 4,
}  # fmt: skip
PAPER: dict[str, Any] = {
    "epochs": 400,
    "batch": 64,
    "optimiser": "adamw",
    "rate": 1e-3,
    "decay": 0.06,
}
SMALL: dict[str, Any] = {
    "epochs": 10,
    "optimiser": "adamw",
    "rate": 4e-3,
    "decay": 0.01,
    "steps": 2,
}
ONE: dict[str, Any] = {**SMALL, "decay": 0.05, "steps": 1}
RECIPES: dict[str, dict[str, Recipe]] = {
    "integer-net": {
        "small": Recipe(
            "isospike-integer-net", {"channels": [48, 128, 192], "levels": 4, "divisor": 2},
            epochs=13, batch=250, optimiser="muon", rate=0.06, warmup=0.1, decay=1e-3, steps=1,
            clamped=0.6,
        ),
        "full": Recipe(
            "isospike-integer-net", {"channels": [128, 256, 512], "levels": 4},
            epochs=60, batch=250, rate=0.6, decay=1e-3, steps=1,
        ),
    },
    "sequence-net": {
        "small": Recipe(
            "isospike-sequence-net",
            epochs=6, optimiser="adamw", rate=4e-3, decay=0.01, shift=1, flip=False, steps=28,
        ),
        "full": Recipe(
            "isospike-sequence-net", {"channels": [256, 256, 512]},
            epochs=60, optimiser="adamw", rate=2e-3, decay=0.01, shift=2, flip=False, steps=28,
        ),
    },
    "qkformer": {
        "small": Recipe("isospike-qkformer", POOLED, **{**ONE, "epochs": 12}),
        "full": Recipe("isospike-qkformer", **PAPER),
    },
    "ms-qkformer": {
        "small": Recipe("isospike-ms-qkformer", FOUR, **SMALL),
        "full": Recipe("isospike-ms-qkformer", **PAPER),
    },
    "max-former": {
        "small": Recipe(
            "isospike-max-former",
            {**POOLED, "depths": [2, 1, 1], "kernels": [3, 3]},
            **{**ONE, "epochs": 24, "batch": 64, "rate": 3e-3},
        ),
        "full": Recipe("isospike-max-former", **{**PAPER, "batch": 128, "rate": 1.5e-3}),
    },
    "spike-driven": {
        "small": Recipe(
            "isospike-spike-driven", {"channels": 128, "blocks": 2, "expansion": 2}, **SMALL
        ),
        "full": Recipe("isospike-spike-driven", **{**PAPER, "epochs": 300, "rate": 3e-4}),
    },
    "spikformer": {
        "small": Recipe(
            "isospike-spikformer",
            {"channels": 96, "heads": 8, "blocks": 2, "expansion": 2}, **SMALL,
        ),
        "full": Recipe("isospike-spikformer", **{**PAPER, "epochs": 300, "rate": 5e-4}),
    },
    "spiking-resformer": {
        "small": Recipe(
            "isospike-spiking-resformer",
            {
                "form": "imagenet", "channels": [64, 160], "depths": [2, 1], "heads": [2, 4],
                "patches": [2, 1], "group": 64, "expansion": 2, "levels": 4,
            },
            **{**ONE, "epochs": 14},
        ),
        "full": Recipe(
            "isospike-spiking-resformer",
            **{**PAPER, "epochs": 600, "batch": 128, "rate": 5e-4, "decay": 0.01},
        ),
    },
}  # fmt: skip
"""By the name of a model, and by size. ``full`` has the papers' optimiser and length; of their
variation of images it has shifts and mirrors alone."""


def find_recipe(name: str, size: str = "small") -> Recipe:
    """The recipe of a model by name and size, or of a file.

    Args:
        name: One of :data:`RECIPES`, or the path of a ``recipe.toml``.
        size: ``small`` or ``full``; of no account for a file.

    Returns:
        The recipe.

    Raises:
        InputError: There is none of this name, or the file is no recipe.

    >>> find_recipe("qkformer", "full").epochs
    400
    """
    if name.endswith(".toml"):
        return read_recipe(name)
    if name not in RECIPES or size not in RECIPES[name]:
        wrong = name if name not in RECIPES else size
        raise InputError(
            f"train needs a model of {', '.join(RECIPES)}, or a recipe.toml, and a size of small, "
            f"full, got {wrong!r}. Choose one."
        )
    return RECIPES[name][size]
