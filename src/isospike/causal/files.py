"""What kind of file a table is in: text of several encodings, packed files, JSON, spreadsheets."""

import gzip
import io
import json
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from isospike.causal.cells import plain
from isospike.data import read_text
from isospike.errors import InputError, MissingExtraError, first_sentence
from isospike.report.reading import read_file

_MOST_UNPACKED = 2**30
_OTHERS = {
    b"\x80": "a pickle",
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls)",
    b"\x93NUMPY": "an array of NumPy (.npy)",
    b"BZh": "a file packed by bzip2",
    b"\xfd7zXZ": "a file packed by xz",
    b"<!doctype": "a web page (HTML)",
    b"<html": "a web page (HTML)",
    b"<?xml": "an XML file",
}
Cells = tuple[list[str], list[list[str]]]  # names of the columns, and the cells of each row


class Opened(NamedTuple):
    """The content of a file.

    Attributes:
        content: Text, or names and cells.
        file_format: What the file is, if it is not plain text in UTF-8.
    """

    content: str | Cells
    file_format: str


def open_table(path: str | Path) -> Opened:
    """Read a file that holds a table.

    Args:
        path: The file.

    Returns:
        Its text or its cells.

    Raises:
        InputError: The file cannot be read or is none of the known kinds.
        MissingExtraError: pandas or one of its readers is needed and not installed.
    """
    name = str(path)
    packed = read_file(path, "read_table")
    form = []
    try:
        if packed.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(packed)) as stream:
                packed = stream.read(_MOST_UNPACKED)
            form.append("gzip")
        if packed.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                inside = [i for i in archive.infolist() if not i.is_dir()]
                if "[Content_Types].xml" in archive.namelist():
                    return Opened(_frame("excel", packed, name), "Excel, its first sheet")
                if len(inside) != 1 or inside[0].file_size > _MOST_UNPACKED:
                    raise InputError(
                        f"read_table needs one table in an archive, got {len(inside)} files in "
                        f"{name!r}. Unpack it and name one."
                    )
                packed = archive.read(inside[0])
                form.append("zip")
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"read_table needs a whole file, got {name!r}, which does not unpack: "
            f"{first_sentence(error)} Fetch it again."
        ) from None
    if packed.startswith(b"PAR1"):
        return Opened(_frame("parquet", packed, name), "parquet")
    for first, what in _OTHERS.items():
        if packed.lstrip()[: len(first)].lower() == first.lower():
            raise InputError(f"read_table needs a table, got {what} in {name!r}. Save it as CSV.")
    text, encoding = _decoded(packed, path)
    form += [encoding] if encoding else []
    if text.lstrip()[:1] in ("[", "{"):
        return Opened(_records(text, name), ", ".join([*form, "JSON"]))
    return Opened(text, ", ".join(form))


def _decoded(packed: bytes, path: str | Path) -> tuple[str, str]:
    """Text and its encoding, if that is not UTF-8."""
    try:
        if packed[:2] in (b"\xff\xfe", b"\xfe\xff") and packed[2:4] != b"\0\0":
            return _lines(packed.decode("utf-16")), "UTF-16"
        if packed[1:40:2].count(b"\0") > 10:
            return _lines(packed.decode("utf-16-le")), "UTF-16"
        text = _lines(packed.decode("utf-8-sig"))
        if not text.strip() or "\0" in text[:1000]:
            return read_text(path), ""  # says what is wrong
    except UnicodeDecodeError:
        if b"\0" in packed or packed[:4] in (b"%PDF", b"MThd"):
            return read_text(path), ""
        return _lines(packed.decode("latin-1")), "Latin-1"
    return text, ""


def _lines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _records(text: str, name: str) -> Cells:
    """Records, or columns, of JSON."""
    try:
        data = json.loads(text)
    except ValueError:
        try:  # a record on each line
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise InputError(
                f"read_table needs JSON of records, got {name!r}, which is none: {error}. Write a "
                "list of objects, one for each row."
            ) from None
    if isinstance(data, dict) and all(isinstance(v, list) for v in data.values()):
        if len({len(v) for v in data.values()}) == 1:
            data = [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
    if not (isinstance(data, list) and data and all(isinstance(r, dict) for r in data)):
        raise InputError(
            f"read_table needs JSON of records, got something else in {name!r}. Write a list of "
            "objects, one for each row."
        )
    names = list(dict.fromkeys(key for record in data for key in record))
    return names, [[plain(record.get(n)) for n in names] for record in data]


def _frame(kind: str, packed: bytes, name: str) -> Cells:
    """The cells of a file that pandas reads."""
    try:
        pandas: Any = import_module("pandas")
        frame = getattr(pandas, f"read_{kind}")(io.BytesIO(packed))
    except ImportError as error:
        raise MissingExtraError(
            f"read_table needs pandas and its reader for {kind} files, got "
            f"{first_sentence(error)} Install pandas, and openpyxl for Excel or pyarrow for "
            "parquet."
        ) from None
    except Exception as error:  # noqa: BLE001 - each engine has errors of its own
        raise InputError(
            f"read_table needs a whole {kind} file, got {name!r}: {first_sentence(error)} Save "
            "it again."
        ) from None
    names = [str(c) if not str(c).startswith("Unnamed:") else "" for c in frame.columns]
    cells = [[plain(v) for v in row] for row in frame.itertuples(index=False)]
    kept = [j for j, n in enumerate(names) if n]
    return [names[j] for j in kept], [[row[j] for j in kept] for row in cells]
