"""Background knowledge: edges that are known, and groups of variables in a known order."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from isospike.causal.metrics import descendants
from isospike.causal.table import parse_edges, parse_tiers
from isospike.data import read_text
from isospike.errors import InputError

Edges = Iterable[tuple[Any, Any]]


class Constraints(NamedTuple):
    """Background knowledge as matrices ``[parent, child]``.

    Attributes:
        required: Edges that are in the graph.
        forbidden: Edges that are not in the graph.
        before: ``before[i, j]`` if i must come before j; None if there is no such pair.
    """

    required: Bool[np.ndarray, "d d"]
    forbidden: Bool[np.ndarray, "d d"]
    before: Bool[np.ndarray, "d d"] | None


@dataclass(frozen=True)
class BackgroundKnowledge:
    """What is known of the graph beforehand; variables are given by name or index.

    >>> known = BackgroundKnowledge(required=[("rain", "wet")], tiers=[["rain"], ["wet", "cold"]])
    >>> known.constraints(["wet", "rain", "cold"]).required.nonzero()
    (array([1]), array([0]))

    Attributes:
        required: Edges ``(parent, child)`` that are in the graph.
        forbidden: Edges ``(parent, child)`` that are not in the graph.
        tiers: Groups of variables, earlier groups before later ones. Variables in no group are
            free.
    """

    required: Edges = ()
    forbidden: Edges = ()
    tiers: Iterable[Iterable[Any]] = ()

    def constraints(self, names: Sequence[str]) -> Constraints:
        """The knowledge as matrices.

        Args:
            names: Names of the variables.

        Returns:
            The matrices.

        Raises:
            InputError: A variable is unknown, an edge is both required and forbidden, or the
                knowledge contains a cycle.
        """
        required = _edges(self.required, names, "required")
        forbidden = _edges(self.forbidden, names, "forbidden")
        if (required & forbidden).any():
            i, j = np.argwhere(required & forbidden)[0]
            raise InputError(
                f"BackgroundKnowledge needs edges that are either required or forbidden, got "
                f"{names[i]} -> {names[j]} as both. Remove it from one of the two lists."
            )
        known = required.copy()
        tiers = [[_index(v, names, "tiers") for v in tier] for tier in self.tiers]
        for earlier, later in zip(tiers, tiers[1:], strict=False):
            known[np.ix_(earlier, later)] = True
        before = descendants(known, "BackgroundKnowledge") if known.any() else None
        return Constraints(required, forbidden, before)


def read_background(
    columns: Sequence[str],
    *,
    required: str | Path | None = None,
    forbidden: str | Path | None = None,
    tiers: str | Path | None = None,
) -> BackgroundKnowledge:
    """Read background knowledge from files.

    >>> read_background(["rain", "wet"]).required
    []

    Args:
        columns: Names of the variables.
        required: File with a cause and an effect on each line.
        forbidden: File with a cause and an effect on each line.
        tiers: File with the names of a tier on each line, earlier tiers first.

    Returns:
        The knowledge.

    Raises:
        InputError: A file cannot be read, or does not fit the columns.
    """

    def edges(path: str | Path | None, acyclic: bool) -> list[tuple[str, str]]:
        if path is None:
            return []
        graph = parse_edges(read_text(path), columns, str(path), acyclic)
        return [(columns[i], columns[j]) for i, j in np.argwhere(graph)]

    return BackgroundKnowledge(
        required=edges(required, True),
        forbidden=edges(forbidden, False),
        tiers=[] if tiers is None else parse_tiers(read_text(tiers), columns, str(tiers)),
    )


def _edges(edges: Edges, names: Sequence[str], what: str) -> Bool[np.ndarray, "d d"]:
    out = np.zeros((len(names),) * 2, bool)
    for parent, child in edges:
        out[_index(parent, names, what), _index(child, names, what)] = True
    return out


def _index(variable: Any, names: Sequence[str], what: str) -> int:
    if str(variable) in names:
        return names.index(str(variable))
    # Where labels are numbers, a number that is no label is no place either.
    labelled = any(re.fullmatch(r"-?\d+", name) for name in names)
    whole = isinstance(variable, int | np.integer) and not isinstance(variable, bool)
    if whole and not labelled and 0 <= variable < len(names):
        return int(variable)
    raise InputError(
        f"BackgroundKnowledge needs {what} with names of columns, got {variable!r}. The columns "
        f"are {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}."
    )
