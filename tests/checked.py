"""Types and shapes checked at every call as by :func:`jaxtyping.jaxtyped`, in a fifth of its time.

jaxtyping builds the checks of every function at import, binds the arguments by :mod:`inspect`
at every call, and checks them again with the result. Here checks are built at the first call, once
for all closures of a function, and arguments are bound only where a shape in braces reads them.
What is checked is the same.
"""

import functools
import inspect
import typing
import weakref
from dataclasses import is_dataclass

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError
from jaxtyping._config import config
from jaxtyping._decorator import _destring_annotation, _make_fn_with_signature
from jaxtyping._storage import pop_shape_memo, push_shape_memo

JAXTYPED = jaxtyping.jaxtyped
UNCHECKED = (inspect.Signature.empty, typing.Any)
BUILT = {}  # the checks of closures, by their code and annotations
WRAPPED = weakref.WeakSet()  # all that is checked
check_types = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
# A port's products are told apart by what calls them, but for frames of jaxtyping.
__name__ = JAXTYPED.__module__


def install(modules):
    """Check every function of these modules, which are not imported yet."""
    jaxtyping.jaxtyped = jaxtyped  # the hook writes this name above every function
    jaxtyping.install_import_hook(modules, "beartype.beartype")


def jaxtyped(fn=None, *, typechecker):
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if getattr(fn, "__no_type_check__", False):
        return fn
    if inspect.isclass(fn):
        if is_dataclass(fn) and fn.__init__.__globals__ is not globals():
            fn.__init__ = jaxtyped(fn.__init__, typechecker=typechecker)
        return fn
    if not inspect.isfunction(fn):
        return JAXTYPED(fn, typechecker=typechecker)
    checks = None

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal checks
        if config.jaxtyping_disable:
            return fn(*args, **kwargs)
        if checks is None:
            checks = find_checks(fn)
        check, check_result, has_shapes, signature = checks
        if has_shapes:  # sizes of axes hold for one call
            push_shape_memo(bound(signature, args, kwargs) if signature else {})
        try:
            if check is not None:
                check(*args, **kwargs)
            out = fn(*args, **kwargs)
            return out if check_result is None else check_result(ret0=out)
        finally:
            if has_shapes:
                pop_shape_memo()

    WRAPPED.add(wrapped)
    return wrapped


def bound(signature, args, kwargs):
    """The arguments by name, with their defaults: shapes like ``{rows} d`` read them."""
    found = signature.bind(*args, **kwargs)
    found.apply_defaults()
    return found.arguments


def find_checks(fn):
    """The checks of a function, built once for all that have its code and annotations."""
    try:
        key = (fn.__code__, *fn.__annotations__.items())
        hash(key)
    except TypeError:
        return build_checks(fn)
    if key not in BUILT:
        BUILT[key] = build_checks(fn)
    return BUILT[key]


def build_checks(fn):
    """What checks the arguments, what checks the result, and what both need."""
    whole = inspect.signature(fn)
    parameters = [
        p.replace(annotation=_destring_annotation(p.annotation, fn.__globals__))
        for p in whole.parameters.values()
    ]
    result = _destring_annotation(whole.return_annotation, fn.__globals__)
    annotations = [p.annotation for p in parameters]
    names = fn.__name__, fn.__qualname__, fn.__module__
    check = check_result = None
    if any(a not in UNCHECKED for a in annotations):
        given = inspect.Signature(parameters, return_annotation=typing.Any)
        check = check_types(_make_fn_with_signature(*names, given, output=False))
    if result not in UNCHECKED:
        returned = inspect.Signature(return_annotation=result)
        check_result = check_types(_make_fn_with_signature(*names, returned, output=True)[0])
    shapes = [shape for a in (*annotations, result) for shape in shapes_of(a)]
    braces = any("{" in getattr(shape, "dim_str", "{") for shape in shapes)
    return check, check_result, bool(shapes), whole if braces else None


def shapes_of(annotation):
    """The annotations of jaxtyping within one."""
    if type(annotation).__module__.startswith("jaxtyping"):
        return [annotation]
    return [shape for part in typing.get_args(annotation) for shape in shapes_of(part)]
