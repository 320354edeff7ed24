"""Bayesian networks of discrete variables, read from BIF files, to be sampled."""

import re
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Int

from isospike.causal.simulate import topological
from isospike.errors import RangeError

_VARIABLE = re.compile(r"variable\s+(\S+)\s*\{\s*type\s+discrete\s*\[\s*\d+\s*\]\s*\{([^}]*)\}")
_TABLE = re.compile(r"probability\s*\(\s*([^|)]+?)\s*(?:\|([^)]*))?\)\s*\{([^}]*)\}")
_ROW = re.compile(r"(?:\(([^)]*)\)|(table|default))\s*([^;]*);")


@dataclass(frozen=True)
class Network:
    """A Bayesian network.

    Attributes:
        names: Of the variables.
        states: Each one's values, by name.
        truth: The graph, ``[parent, child]``.
        parents: Each one's, by index, in the order of its table.
        tables: Probabilities ``[*parents, states]``.
    """

    names: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]
    truth: Bool[np.ndarray, "d d"]
    parents: tuple[tuple[int, ...], ...]
    tables: tuple[np.ndarray, ...]

    def sample(self, rows: int, generator: np.random.Generator) -> Int[np.ndarray, "{rows} d"]:
        """States by index, parents before children."""
        out = np.empty((rows, len(self.names)), np.int64)
        for i in topological(self.truth):
            edges = self.tables[i].cumsum(-1)[tuple(out[:, p] for p in self.parents[i])]
            draw = generator.random((rows, 1)) * edges[..., -1:]
            out[:, i] = (draw >= edges).sum(-1)
        return out


def parse_bif(text: str, name: str = "the network") -> Network:
    """A network from the text of a BIF file, as the bnlearn repository has them.

    Raises:
        RangeError: No variables, a table without its variable or of another size, probabilities
            that do not sum to 1, or a cycle.
    """
    found = {v: [s.strip() for s in states.split(",")] for v, states in _VARIABLE.findall(text)}
    if not found:
        raise RangeError(f"parse_bif needs variables of type discrete, got none in {name}.")
    place = {v: i for i, v in enumerate(found)}
    sizes = [len(s) for s in found.values()]
    d = len(found)
    truth = np.zeros((d, d), bool)
    parents: list[tuple[int, ...]] = [()] * d
    tables: list[np.ndarray | None] = [None] * d
    for child, given, body in _TABLE.findall(text):
        own = [v.strip() for v in given.split(",") if v.strip()]
        for v in (child, *own):
            if v not in place:
                raise RangeError(f"parse_bif needs tables of its variables, got {v!r} in {name}.")
        i = place[child]
        parents[i] = tuple(place[v] for v in own)
        truth[list(parents[i]), i] = True
        tables[i] = _table(body, [found[v] for v in own], sizes[i], f"{child} in {name}")
    lacking = [v for v, t in zip(found, tables, strict=True) if t is None]
    if lacking:
        raise RangeError(f"parse_bif needs a table of each variable, got none of {lacking[0]}.")
    topological(truth)
    states = tuple(tuple(s) for s in found.values())
    whole = tuple(t for t in tables if t is not None)
    return Network(tuple(found), states, truth, tuple(parents), whole)


def _table(body: str, given: list[list[str]], size: int, who: str) -> np.ndarray:
    table = np.full((*map(len, given), size), np.nan)
    rows = [(key, kind, [float(v) for v in values.split(",")])
            for key, kind, values in _ROW.findall(body)]  # fmt: skip
    for _, kind, values in sorted(rows, key=lambda r: r[1] != "default"):
        if kind and (len(values) == size or len(values) == table.size):
            table[...] = np.reshape(values, table.shape if len(values) == table.size else size)
    for key, kind, values in rows:
        if not kind:
            states = [s.strip() for s in key.split(",")]
            known = len(states) == len(given) and all(
                s in g for s, g in zip(states, given, strict=True)
            )
            if not known or len(values) != size:
                raise RangeError(
                    f"parse_bif needs rows of known states and {size} probabilities, got "
                    f"({key}) and {len(values)} for {who}."
                )
            table[tuple(g.index(s) for s, g in zip(states, given, strict=True))] = values
    for at in product(*(range(len(g)) for g in given)):
        if not (abs(table[at].sum() - 1) < 1e-3 and (table[at] >= 0).all()):
            raise RangeError(
                f"parse_bif needs probabilities that sum to 1, got {table[at].sum():g} for {who}."
            )
    return table
