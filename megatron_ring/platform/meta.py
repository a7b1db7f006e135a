"""Tensors without memory: real modules built for their shapes alone, on the meta device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

FACTORIES = {
    f"{name}{suffix}"
    for name in ("empty", "full", "ones", "rand", "randint", "randn", "zeros")
    for suffix in ("", "_like")
} | {"arange"}
OF_VALUES = {"as_tensor", "tensor"}  # a few numbers that somebody will read: Adam's step


class _OnMeta(TorchFunctionMode):
    """Whatever device is asked for: new tensors are meta tensors, and none is moved.

    Not `torch.device("meta")`: that leaves explicit devices alone, and megatron-core names them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.__name__
        if name in ("cpu", "cuda"):
            return args[0]
        if name == "to":
            dtypes = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.dtype)]
            return func(args[0], dtypes[0]) if dtypes else args[0]
        if name in FACTORIES:
            kwargs["device"] = "meta"
        elif name in OF_VALUES:
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if name == "type" and isinstance(result, str):
            return result.replace("torch.meta.", "torch.cuda.")  # optimizers ask for these
        return result


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, modules, gradient buffers and optimizers are built of meta tensors.

    megatron-core's optimizer asks all ranks which parameter groups they have, which takes real
    tensors; here every rank is taken to answer as this one.
    """
    ask = dist.all_gather_object

    def answer(everyone: list[Any], own: Any, group: Any = None) -> None:
        everyone[:] = [own] * len(everyone)

    dist.all_gather_object = answer
    try:
        with _OnMeta():
            yield
    finally:
        dist.all_gather_object = ask
