"""megatron-core on a CPU: what it asks of CUDA, answered by the CPU.

megatron-core 0.16 and 0.19 write `device="cuda"` into optimizer, schedules, clipping and
checkpointing, wait on streams and events, keep CUDA random states and check tensor type names.
`install` answers each of these once per process, and only where there is no GPU. Nothing here
changes a number: streams and events order work that a CPU runs in order anyway.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import megatron.core.jit
import torch

CPU = torch.device("cpu")
FACTORIES = (
    "arange as_tensor empty empty_like full full_like ones ones_like rand rand_like randint "
    "randn randn_like tensor zeros zeros_like"
).split()
TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
}
_installed = False


class _Stream:
    """A CUDA stream or event on a machine where all work is in order already."""

    device = CPU
    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "_Stream") -> float:
        return 0.0

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record_event(self, event: "_Stream | None" = None) -> "_Stream":
        return self

    record = wait = synchronize = wait_stream = wait_event = _nothing


def install() -> None:
    """Patch torch.cuda, tensor factories and three places of megatron-core, once."""
    global _installed
    if _installed:
        return
    _installed = True
    _patch_cuda()
    _patch_tensors()
    # megatron-core decorates small functions with torch.compile: on a CPU each would start a C++
    # compiler in every process, for functions we mostly do not call.
    torch._dynamo.config.disable = True
    megatron.core.jit.disable_jit_fuser()  # for modules not imported yet
    _patch_megatron()


def _patch_cuda() -> None:
    stream = _Stream()
    for name in ("synchronize", "manual_seed", "manual_seed_all", "empty_cache", "set_device"):
        setattr(torch.cuda, name, _nothing())
    torch.cuda.Stream = torch.cuda.Event = _Stream
    torch.cuda.current_stream = lambda *args, **kwargs: stream
    torch.cuda.default_stream = lambda *args, **kwargs: stream
    torch.cuda.stream = lambda *args, **kwargs: nullcontext()
    torch.cuda.current_device = lambda: CPU
    torch.cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop = _nothing(), _nothing()


def _nothing() -> Callable[..., None]:
    """A function that does nothing, a new one each time: torch keeps a table by function."""
    return lambda *args, **kwargs: None


def _on_cpu(device: Any) -> Any:
    """`device` as it is, or the CPU when it names CUDA."""
    if isinstance(device, str | torch.device) and torch.device(device).type == "cuda":
        return CPU
    return device


def _patch_tensors() -> None:
    for name in FACTORIES:
        setattr(torch, name, _factory(getattr(torch, name)))
    to, type_name = torch.Tensor.to, torch.Tensor.type

    @functools.wraps(to)
    def to_cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        return to(self, *map(_on_cpu, args), **kwargs)

    @functools.wraps(type_name)
    def type_as_on_cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_name(self, *args, **kwargs)
        return TYPE_NAMES.get(answer, answer) if isinstance(answer, str) else answer

    torch.Tensor.to = to_cpu
    torch.Tensor.type = type_as_on_cuda  # the optimizers refuse tensors of other type names
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.record_stream = lambda self, stream: None


def _factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        kwargs.pop("pin_memory", None)
        return make(*args, **kwargs)

    return wrapper


def _patch_megatron() -> None:
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # 0.16.1 names this without defining it when TransformerEngine is not installed.
    if "te_general_gemm" not in vars(moe_utils):
        moe_utils.te_general_gemm = None

    def move_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        """all_to_all refuses split sizes that are tensors, so they become numpy here too."""
        if isinstance(tensor, torch.Tensor) and as_numpy:
            return tensor.numpy()
        return tensor

    token_dispatcher.maybe_move_tensor_to_cpu = move_to_cpu
