"""Our operators, as torch knows them: ``torch.ops.isospike``.

They are registered one by one rather than by ``torch.library.custom_op``, whose first call imports
torch's compiler: two seconds for whoever does not use it.
"""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY: Any = torch.library.Library("isospike", "FRAGMENT")


def define(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> Any:
    """The operator ``schema``: what it does, the shapes and types of its results, its gradient."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"isospike::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"isospike::{name}", backward, setup_context=save, lib=LIBRARY
        )
    return getattr(torch.ops.isospike, name)
