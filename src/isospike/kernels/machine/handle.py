"""Many arrays as one argument of a compiled loop.

Numba looks at every array of an argument anew in each call, which takes longer than what the
machine does for one symbol. A handle's arrays are looked at once. Nor are they counted: Numba
counts who refers to an array, one by one and atomically, in each function that is given a tuple.
"""

import struct
from typing import Any

import numpy as np
from numba import typeof, types
from numba.core.datamodel import models
from numba.extending import NativeValue, intrinsic, register_model, unbox
from numba.np.arrayobj import populate_array


class Handle:
    """Tuples of arrays and numbers as one argument; :func:`parts` is what compiled code reads.

    A handle keeps its arrays, whose memory it knows by address. A copy of it, and one that was
    pickled, has the copies' addresses.

    Args:
        parts: Arrays without gaps, numbers and tuples of them.
    """

    __slots__ = ("_numba_type_", "address", "parts", "record")

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.record = np.array(_words(parts), np.int64)
        self.address = self.record.ctypes.data
        self._numba_type_ = HandleType(typeof(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return Handle, self.parts


class HandleType(types.Type):  # type: ignore[misc]
    """The type of a handle, by the type of its parts."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        super().__init__(name=f"Handle({parts})")


def _words(part: Any) -> list[int]:
    """What the record says of a part: an array's address and shape, or a number's bits."""
    if isinstance(part, tuple):
        return [word for inner in part for word in _words(inner)]
    if isinstance(part, np.ndarray):
        if not part.flags.c_contiguous:
            raise ValueError("a handle needs arrays without gaps")
        return [part.ctypes.data, *part.shape]
    if isinstance(part, float):
        return list(struct.unpack("q", struct.pack("d", part)))
    return [part]


@register_model(HandleType)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    """The record's address."""

    def __init__(self, manager: Any, kind: Any) -> None:
        word = manager.lookup(types.int64).get_value_type()
        super().__init__(manager, kind, word.as_pointer())


@unbox(HandleType)
def _unbox(kind: Any, value: Any, c: Any) -> Any:
    address = c.pyapi.object_getattr_string(value, "address")
    record = c.builder.inttoptr(c.pyapi.long_as_longlong(address), c.context.get_value_type(kind))
    c.pyapi.decref(address)
    return NativeValue(record)


@intrinsic
def parts(context, handle):
    """The parts of a handle, in compiled code."""

    def read(context, builder, signature, arguments):
        return _read(context, builder, handle.parts, arguments[0], 0)[0]

    return handle.parts(handle), read


def _read(context: Any, builder: Any, kind: Any, record: Any, place: int) -> tuple[Any, int]:
    """The part that begins at a place of the record, and the place behind it."""
    if isinstance(kind, types.BaseTuple):
        values = []
        for inner in kind.types:
            value, place = _read(context, builder, inner, record, place)
            values.append(value)
        return context.make_tuple(builder, kind, values), place

    def word(i: int) -> Any:
        return builder.load(builder.gep(record, [context.get_constant(types.intp, i)]))

    if not isinstance(kind, types.Array):
        value = builder.bitcast(word(place), context.get_value_type(kind))
        return value, place + 1
    array = context.make_array(kind)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    shape = [word(place + 1 + i) for i in range(kind.ndim)]
    step, strides = context.get_constant(types.intp, size), list[Any]()
    for length in reversed(shape):
        strides.insert(0, step)
        step = builder.mul(step, length)
    populate_array(
        array, data=builder.inttoptr(word(place), array.data.type), shape=shape, strides=strides,
        itemsize=context.get_constant(types.intp, size), meminfo=None,
    )  # fmt: skip
    return array._getvalue(), place + 1 + kind.ndim
