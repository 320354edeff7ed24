"""Dataclasses and named tuples as plain values of JSON, and back, by their type hints.

What is not finite becomes null, which a number without a None in its type reads as NaN. Reading is
strict: a field too many or too few, or of another type, is refused by its path.
"""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from isospike.errors import InputError


def encode(value: Any) -> Any:
    """Plain values of JSON for ``value``.

    Args:
        value: Dataclasses, named tuples, mappings, sequences, text, numbers, nested at will.

    Returns:
        Dictionaries, lists, text, numbers and None.

    Raises:
        InputError: Something else is in it.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "_asdict"):
        return {name: encode(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): encode(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    if hasattr(value, "item"):  # a number of NumPy or torch
        return encode(value.item())
    raise InputError(
        f"to_json needs dataclasses, text and numbers, got {type(value).__name__}. Store its parts."
    )


def decode(kind: Any, value: Any, path: str = "") -> Any:
    """The value of type ``kind`` that :func:`encode` made ``value`` of.

    Args:
        kind: A type hint.
        value: What JSON held.
        path: Of the value, for messages.

    Returns:
        The value.

    Raises:
        InputError: The value is not of that type; the message names its path.
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return decode(arguments[0], value, path)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(arguments, value, path)
    if origin is typing.Literal:
        return value if value in arguments else _refuse(f"one of {arguments}", value, path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _decode_mapping(arguments, value, path)
    if origin is tuple and arguments[-1] is not Ellipsis:
        items = _items(value, path, len(arguments))
        return tuple(decode(k, v, f"{path}[{i}]")
                     for i, (k, v) in enumerate(zip(arguments, items, strict=True)))  # fmt: skip
    if isinstance(origin, type) and issubclass(origin, Sequence):
        made = [decode(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(_items(value, path))]
        return made if origin is list else tuple(made)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return _decode_record(kind, value, path)
    if kind is float:
        if value is None:
            return math.nan
        small = type(value) is float or (type(value) is int and abs(value) < 2**1023)
        return float(value) if small else _refuse("a number", value, path)
    if kind is types.NoneType:
        return value if value is None else _refuse("null", value, path)
    return value if type(value) is kind else _refuse(kind.__name__, value, path)


def _decode_union(kinds: Sequence[Any], value: Any, path: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = [k for k in kinds if k is not types.NoneType]
    for kind in kinds[:-1]:
        try:
            return decode(kind, value, path)
        except InputError:
            continue
    return decode(kinds[-1], value, path)


def _decode_mapping(arguments: Sequence[Any], value: Any, path: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        _refuse("an object", value, path)
    key_of = arguments[0] if arguments[0] in (int, float) else str
    try:
        keys = {key: key_of(key) for key in value}
    except ValueError:
        _refuse(f"keys that are {key_of.__name__}", list(value), path)
    return {keys[k]: decode(arguments[1], v, _join(path, k)) for k, v in value.items()}


def _decode_record(kind: Any, value: Any, path: str) -> Any:
    hints = _hints(kind)
    if not isinstance(value, dict):
        _refuse("an object", value, path)
    missing, unknown = [n for n in hints if n not in value], [n for n in value if n not in hints]
    if missing or unknown:
        what = f"{missing[0]!r}, got none" if missing else f"no field {unknown[0]!r}, got one"
        raise InputError(
            f"from_json needs {what} in {path or 'the report'} ({kind.__name__}). Use the version "
            "of isospike that saved it, or make it again."
        )
    return kind(**{name: decode(hint, value[name], _join(path, name))
                   for name, hint in hints.items()})  # fmt: skip


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    names = kind._fields if hasattr(kind, "_fields") else [f.name for f in fields(kind) if f.init]
    return {name: hints[name] for name in names}


def _items(value: Any, path: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        _refuse("a list" if length is None else f"a list of {length}", value, path)
    items: list[Any] = value
    return items


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)


def _refuse(what: str, value: Any, path: str) -> typing.NoReturn:
    got = type(value).__name__ if isinstance(value, dict | list) else repr(value)
    raise InputError(
        f"from_json needs {what} in {path or 'the report'}, got {got:.60}. Use a file that "
        "isospike saved."
    )
