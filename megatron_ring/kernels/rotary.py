"""Rotary embedding of a fused projection, from tables by position: no loop over documents.

Letters: S tokens · G key/value heads, each with H/G query heads · R head width.
"""

from typing import Any

import torch
from torch import Tensor


def split_and_rotate(
    qkv_SGHR: Tensor, cos_SR: Tensor, sin_SR: Tensor, backend: str = "torch"
) -> tuple[Tensor, Tensor, Tensor]:
    """[S, G, H/G + 2, R] -> queries [S, H, R] and keys [S, G, R], both rotated, values [S, G, R].

    `cos_SR` and `sin_SR` are float32 [S, 1, R], halves repeated; products are fp32, results have
    the dtype of `qkv_SGHR`. `backend`: torch or triton.
    """
    if backend == "triton" and len(qkv_SGHR):
        return _SplitAndRotate.apply(qkv_SGHR, cos_SR, sin_SR)
    q, k, v = qkv_SGHR.split([qkv_SGHR.shape[2] - 2, 1, 1], dim=2)
    q_SHR = rotate(q.flatten(1, 2), cos_SR, sin_SR)
    return q_SHR, rotate(k.squeeze(2), cos_SR, sin_SR), v.squeeze(2)


def rotate(x_SHR: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """x · cos + (-high, low) · sin in fp32 (Su et al., arXiv 2104.09864, eq. 34, neox order)."""
    x = x_SHR.float()
    low, high = x.chunk(2, dim=-1)
    return (x * cos_SR + torch.cat([-high, low], dim=-1) * sin_SR).to(x_SHR.dtype)


class _SplitAndRotate(torch.autograd.Function):
    """One kernel each way; only the tables are kept, which all layers share."""

    @staticmethod
    def forward(
        ctx: Any, qkv_SGHR: Tensor, cos_SR: Tensor, sin_SR: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from megatron_ring.kernels import rotary_triton

        ctx.save_for_backward(cos_SR, sin_SR)
        return rotary_triton.forward(qkv_SGHR.contiguous(), cos_SR, sin_SR)

    @staticmethod
    def backward(
        ctx: Any, dq_SHR: Tensor, dk_SGR: Tensor, dv_SGR: Tensor
    ) -> tuple[Tensor, None, None]:
        from megatron_ring.kernels import rotary_triton

        grads = (dq_SHR.contiguous(), dk_SGR.contiguous(), dv_SGR.contiguous())
        return rotary_triton.backward(*grads, *ctx.saved_tensors), None, None
