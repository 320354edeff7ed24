"""Bayesian networks of discrete variables: reading of BIF files, and sampling."""

import re
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Int

from isospike.causal.simulate import topological_order
from isospike.errors import InputError

_VARIABLE = re.compile(r"variable\s+(\S+)\s*\{\s*type\s+discrete\s*\[\s*\d+\s*\]\s*\{([^}]*)\}")
_PROBABILITIES = re.compile(r"probability\s*\(\s*([^|)]+?)\s*(?:\|([^)]*))?\)\s*\{([^}]*)\}")
_ROW = re.compile(r"(?:\(([^)]*)\)|(table|default))\s*([^;]*);")


@dataclass(frozen=True)
class Network:
    """A Bayesian network.

    Attributes:
        names: Names of the variables.
        states: Names of each variable's values.
        truth: The graph, ``[parent, child]``.
        parents: Indices of each variable's parents, in the order of the axes of its probabilities.
        probabilities: Conditional probabilities of each variable, ``[*parents, states]``.

    >>> Network(("a",), (("no", "yes"),), np.zeros((1, 1), bool), ((),), (np.ones(2) / 2,)).names
    ('a',)
    """

    names: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]
    truth: Bool[np.ndarray, "d d"]
    parents: tuple[tuple[int, ...], ...]
    probabilities: tuple[np.ndarray, ...]

    def sample(self, rows: int, generator: np.random.Generator) -> Int[np.ndarray, "{rows} d"]:
        """Draw rows, parents before children.

        Args:
            rows: Number of rows.
            generator: Source of randomness.

        Returns:
            Index of each variable's state.
        """
        out = np.empty((rows, len(self.names)), np.int64)
        for i in topological_order(self.truth):
            edges = self.probabilities[i].cumsum(-1)[tuple(out[:, p] for p in self.parents[i])]
            draw = generator.random((rows, 1)) * edges[..., -1:]
            out[:, i] = (draw >= edges).sum(-1)
        return out


def parse_bif(text: str, name: str = "the network") -> Network:
    """Read a network from the text of a BIF file, the format of the bnlearn repository.

    >>> network = parse_bif(
    ...     "variable rain { type discrete [ 2 ] { yes, no }; } "
    ...     "probability ( rain ) { table 0.2, 0.8; }"
    ... )
    >>> network.names, network.probabilities[0].tolist()
    (('rain',), [0.2, 0.8])

    Args:
        text: Contents of the file.
        name: Name of the file, for error messages.

    Returns:
        The network.

    Raises:
        InputError: There are no variables, a variable has no probabilities or a wrong number of
            them, probabilities do not sum to 1, or the graph has a cycle.
    """
    states = {v: [s.strip() for s in values.split(",")] for v, values in _VARIABLE.findall(text)}
    if not states:
        raise InputError(
            f"parse_bif needs variables of type discrete, got none in {name}. Give a network of "
            "discrete variables in the BIF format."
        )
    place = {v: i for i, v in enumerate(states)}
    d = len(states)
    truth = np.zeros((d, d), bool)
    parents: list[tuple[int, ...]] = [()] * d
    probabilities: list[np.ndarray | None] = [None] * d
    for child, given, body in _PROBABILITIES.findall(text):
        own = [v.strip() for v in given.split(",") if v.strip()]
        for v in (child, *own):
            if v not in place:
                raise InputError(
                    f"parse_bif needs probabilities of declared variables, got {v!r} in {name}. "
                    "Declare it as a variable."
                )
        i = place[child]
        parents[i] = tuple(place[v] for v in own)
        truth[list(parents[i]), i] = True
        size = len(states[child])
        given_states = [states[v] for v in own]
        probabilities[i] = _parse_rows(body, given_states, size, f"{child} in {name}")
    lacking = [v for v, t in zip(states, probabilities, strict=True) if t is None]
    if lacking:
        raise InputError(
            f"parse_bif needs probabilities of each variable, got none of {lacking[0]} in {name}. "
            "Add its probability block."
        )
    topological_order(truth, "parse_bif")
    complete = tuple(t for t in probabilities if t is not None)
    values = tuple(tuple(s) for s in states.values())
    return Network(tuple(states), values, truth, tuple(parents), complete)


def _parse_rows(body: str, given: list[list[str]], size: int, which: str) -> np.ndarray:
    """The probabilities in one block: ``given`` are the states of each parent."""
    out = np.full((*map(len, given), size), np.nan)
    rows = [(key, kind, [float(v) for v in values.split(",")])
            for key, kind, values in _ROW.findall(body)]  # fmt: skip
    for _, kind, values in sorted(rows, key=lambda r: r[1] != "default"):
        if kind and (len(values) == size or len(values) == out.size):
            out[...] = np.reshape(values, out.shape if len(values) == out.size else size)
    for key, kind, values in rows:
        if not kind:
            states = [s.strip() for s in key.split(",")]
            known = len(states) == len(given) and all(
                s in g for s, g in zip(states, given, strict=True)
            )
            if not known or len(values) != size:
                raise InputError(
                    f"parse_bif needs rows of known states and {size} probabilities, got "
                    f"({key}) and {len(values)} for {which}. Correct that row."
                )
            out[tuple(g.index(s) for s, g in zip(states, given, strict=True))] = values
    for at in product(*(range(len(g)) for g in given)):
        if not (abs(out[at].sum() - 1) < 1e-3 and (out[at] >= 0).all()):
            raise InputError(
                f"parse_bif needs probabilities that sum to 1, got {out[at].sum():g} for {which}. "
                "Correct that row."
            )
    return out
