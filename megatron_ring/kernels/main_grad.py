"""megatron-core's fp32 gradient buffers, written by the operation that makes the gradient.

DDP gives every weight a slice of its buffer, `main_grad`, and adds to it in a hook what autograd
brings. An operation that adds to it by itself spares a gradient as large as the weight, and the
rounding of every micro-batch's gradient to bf16; it then says so in `grad_added_to_main_grad`
(distributed_data_parallel.py, `_make_backward_post_hook`, and tensor_parallel/layers.py of
megatron-core 0.16.1 and 0.19.2).
"""

import torch
from torch import Tensor


def main_grad_of(weight: Tensor) -> Tensor | None:
    """The fp32 buffer in which DDP gathers this weight's gradient, if there is one."""
    buffer = vars(weight).get("main_grad")
    return buffer if buffer is not None and buffer.dtype == torch.float32 else None


def hand_over(weight: Tensor, main_grad: Tensor) -> Tensor | None:
    """Tell DDP that `main_grad` has the gradient already; what to return to autograd for it."""
    flags = vars(weight)
    if "grad_added_to_main_grad" not in flags:
        return None
    weight.grad_added_to_main_grad = True
    if flags.get("zero_out_wgrad"):  # shared with the embedding, whose gradient is added to it
        return torch.zeros_like(weight)
    # DDP's hook wants to see a gradient, and drops it: any memory of the right form will do.
    return main_grad.view(-1).view(weight.dtype)[: weight.numel()].view_as(weight)
