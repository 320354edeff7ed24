"""The data that the package ships; ``data/README.md`` says where each comes from."""

import gzip
import json
from importlib.resources import files

from isospike.data.readers import chord_symbol
from isospike.errors import InputError

_SACHS_PARENTS = {
    "akt": "erk pka", "erk": "mek pka", "jnk": "pka pkc", "mek": "pka pkc raf", "p38": "pka pkc",
    "pip2": "pip3 plc", "pip3": "plc", "pka": "pkc", "raf": "pka pkc",
}  # fmt: skip


def shakespeare() -> str:
    """Tiny Shakespeare: 1 115 394 characters of plays, 65 symbols.

    Returns:
        Speeches separated by blank lines; the first line of each names the speaker.

    Reference: Karpathy (2015), char-rnn; see ``data/README.md``. Public domain.

    >>> shakespeare().splitlines()[:2]
    ['First Citizen:', 'Before we proceed any further, hear me speak.']
    """
    return _unpack("tinyshakespeare.txt.gz")


def chorales(split: str = "train") -> list[list[str]]:
    """Bach chorales on a quarter-note grid: 229 to train, 76 to validate, 77 to test.

    Args:
        split: ``train``, ``valid`` or ``test``.

    Returns:
        The symbols of each chorale: the MIDI numbers of a chord joined by dashes, low to high;
        silence is ``rest``.

    Raises:
        InputError: Another split.

    Reference: Boulanger-Lewandowski, Bengio, Vincent (2012), Modeling temporal dependencies in
    high-dimensional sequences; see ``data/README.md``. Public domain music.

    >>> len(chorales("test")), chorales("test")[0][0]
    (77, '72-76-79-84')
    """
    splits = json.loads(_unpack("jsb-chorales-quarter.json.gz"))
    if split not in splits:
        raise InputError(
            f"chorales needs a split of {', '.join(splits)}, got {split!r}. Choose one of them."
        )
    return [[chord_symbol(c) for c in piece] for piece in splits[split]]


def sachs() -> tuple[str, tuple[tuple[str, str], ...]]:
    """Proteins in single cells, by flow cytometry, and their consensus causal graph.

    853 cells of the unperturbed condition, 11 columns. The graph is the acyclic consensus of 17
    edges that the bnlearn repository holds. A file of 18 edges in wide use has the cycle PIP2,
    PIP3, PLC and so is the graph of no order.

    Returns:
        The table as CSV text, and the edges of the graph, (cause, effect).

    Reference: Sachs et al. (2005), Causal protein-signaling networks derived from multiparameter
    single-cell data; see ``data/README.md``. CC0.

    >>> table, edges = sachs()
    >>> table.splitlines()[0].split(",")[:3], len(edges)
    (['raf', 'mek', 'plc'], 17)
    """
    edges = tuple(
        (parent, child) for child, parents in _SACHS_PARENTS.items() for parent in parents.split()
    )
    return _unpack("sachs-observational.csv.gz"), edges


def calibration_texts() -> list[str]:
    """Texts of many kinds and lengths, to calibrate a port on that will read anything.

    Captions, questions, instructions, reviews, news, dialogue, technical and old prose, single
    words, numbers, punctuation, one word many times, tables, code, other languages and scripts; up
    to 800 tokens long, and the empty text.

    Returns:
        The texts, those of a kind one after the other; every fifth is a fair sample of them.

    Reference: ``data/README.md``. Ours and public domain.

    >>> len(calibration_texts()), calibration_texts()[2]
    (494, 'An old woman feeds pigeons from a paper bag beside the fountain.')
    """
    return _texts("calibration.txt")


def foreign_texts() -> list[str]:
    """Texts of kinds that :func:`calibration_texts` lacks, to measure how far an error holds.

    Chess, knitting, hexadecimal digits, genes, Rust, Lisp, XML, Italian, Finnish, a translated
    novel and others.

    Returns:
        The texts, those of a kind one after the other.

    Reference: ``data/README.md``. Ours and public domain.

    >>> len(foreign_texts()), foreign_texts()[12]
    (47, 'White to move and mate in three.')
    """
    return _texts("foreign.txt")


def _texts(name: str) -> list[str]:
    """The texts of a file in which the line ``%%% lines KIND`` opens texts of one line each, and
    ``%%% text KIND`` one text."""
    content = (files("isospike") / "data" / name).read_text(encoding="utf-8")
    texts: list[str] = []
    for part in content.removeprefix("%%% ").split("\n%%% "):
        head, _, body = part.partition("\n")
        texts += body.split("\n") if head.startswith("lines ") else [body]
    return texts


def _unpack(name: str) -> str:
    return gzip.decompress((files("isospike") / "data" / name).read_bytes()).decode("ascii")
