"""What tests check at every call is what jaxtyping checks, and every check can be built."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

import beartype
import checked
import jaxtyping
import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError
from torch import Tensor

import isospike
from isospike.codes.orders import nof_m

BOTH = pytest.mark.parametrize(
    "decorate", [checked.jaxtyped, checked.JAXTYPED], ids=["ours", "their"]
)


def made(decorate):
    check = decorate(typechecker=beartype.beartype)

    @check
    def scale(x: Float[Tensor, "n d"], by: Float[Tensor, " d"], *, twice: bool = False) -> Tensor:
        return x * by

    @check
    def cut(x: Float[Tensor, "n d"], rows: int = 2) -> Float[Tensor, "{rows} d"]:
        return x[:3]

    @check
    def same(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x.sum(0, keepdim=True)

    @check
    def length(x: "list[str]", *more: int, **named: float) -> int:
        return len(x) if named else "none"

    @check
    def parts(x: Int[Tensor, " n"]) -> Iterator[int]:
        yield from x.tolist()

    @check
    @dataclass
    class Row:
        values: Float[Tensor, " n"]
        weights: Float[Tensor, " n"]
        name: str = ""

        @property
        @check
        def first(self) -> str:
            return self.values[0]

        @staticmethod
        @check
        def zeros(count: int) -> "Tensor":
            return torch.zeros(count)

    return scale, cut, same, length, parts, Row


@BOTH
def test_right_calls_pass(decorate):
    scale, cut, same, length, parts, row = made(decorate)
    x = torch.ones(3, 2)
    assert torch.equal(scale(x, torch.ones(2), twice=True), x)
    assert cut(x, 3).shape == cut(x, rows=3).shape == (3, 2)
    assert same(x[:1]).shape == (1, 2)
    assert length(["a"], 1, 2, by=0.5) == 1
    assert list(parts(torch.arange(3))) == [0, 1, 2]
    assert row(x[0], x[1], "a").name == "a"
    assert row.zeros(2).shape == (2,)
    # Sizes of axes hold for one call.
    assert scale(torch.ones(1, 5), torch.ones(5)).shape == (1, 5)


@BOTH
@pytest.mark.parametrize("call", [
    lambda scale, *_: scale(torch.ones(3, 2), torch.ones(3)),  # an axis has two sizes
    lambda scale, *_: scale(torch.ones(3), torch.ones(3)),
    lambda scale, *_: scale(torch.ones(3, 2, dtype=torch.int64), torch.ones(2)),
    lambda scale, *_: scale(torch.ones(3, 2), torch.ones(2), twice="no"),
    lambda scale, *_: scale([[1.0]], torch.ones(1)),
    lambda _, cut, *__: cut(torch.ones(4, 2)),  # 3 rows of the 2 asked, by default
    lambda _, cut, *__: cut(torch.ones(4, 2), rows=4),
    lambda _, cut, *__: cut(torch.ones(4, 2), 2.0),
    lambda *f: f[2](torch.ones(3, 2)),  # a result unlike the argument
    lambda *f: f[3](["a"]),  # a result of another type
    lambda *f: f[3]([1], by=0.5),
    lambda *f: f[3](["a"], "b", by=0.5),
    lambda *f: f[3](["a"], by="c"),
    lambda *f: f[4](torch.ones(3)),  # before the first part is asked for
    lambda *f: f[5](torch.ones(3), torch.ones(2)),
    lambda *f: f[5](torch.ones(3), torch.ones(3), 5),
    lambda *f: f[5](torch.ones(3), torch.ones(3)).first,
    lambda *f: f[5].zeros("2"),
])  # fmt: skip
def test_wrong_calls_are_refused(decorate, call):
    functions = made(decorate)
    with pytest.raises(TypeCheckError):
        call(*functions)


@BOTH
def test_a_call_that_no_signature_takes_is_a_type_error(decorate):
    scale, *_ = made(decorate)
    for call in (lambda: scale(torch.ones(3, 2)), lambda: scale(1, 2, 3), lambda: scale(z=1)):
        with pytest.raises(TypeError):
            call()


@BOTH
def test_checks_can_be_switched_off(decorate, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    *_, length, _, _ = made(decorate)
    assert length([1]) == "none"


@BOTH
def test_what_asks_for_no_checks_has_none(decorate):
    @decorate(typechecker=beartype.beartype)
    @dataclass
    class Row:
        __no_type_check__ = True
        name: str

    assert Row(3).name == 3


def test_an_error_in_a_call_leaves_no_sizes_behind():
    def fail(x: Float[Tensor, " n"]) -> None:
        raise ValueError(len(x))

    checking = checked.jaxtyped(fail, typechecker=beartype.beartype)
    for size in (2, 3):
        with pytest.raises(ValueError, match=str(size)):
            checking(torch.ones(size))
    assert not jaxtyping._storage._has_shape_memo()


def test_functions_of_the_package_are_checked():
    assert nof_m in checked.WRAPPED
    with pytest.raises(TypeCheckError):
        nof_m("spikes", 1)


@pytest.mark.slow
def test_the_checks_of_every_function_can_be_built():
    for module in pkgutil.walk_packages(isospike.__path__, "isospike."):
        if module.name.split(".")[1] not in ("kernels", "__main__"):
            importlib.import_module(module.name)
    assert len(checked.WRAPPED) > 3000
    for function in list(checked.WRAPPED):
        checked.find_checks(function.__wrapped__)
