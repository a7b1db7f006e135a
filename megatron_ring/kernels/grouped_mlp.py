"""SwiGLU MLPs of all experts of a rank over rows already sorted by expert.

Letters: T rows routed to this rank · E experts on this rank · D hidden · F expert width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_mlp(
    x_TD: Tensor, prob_T: Tensor, counts_E: Tensor, w1_EFD: Tensor, w2_EDF: Tensor
) -> Tensor:
    """prob · (silu(x @ gate.T) * (x @ up.T)) @ down.T of each row's expert, [T, D].

    `w1_EFD` is [E, 2F, D], gate rows then up rows; `w2_EDF` is [E, D, F]; rows of expert e follow
    those of expert e - 1 and number `counts_E[e]` (any integer dtype). Two grouped GEMMs: torch's
    own on a GPU, per-expert products on a CPU.
    """
    ends_E = counts_E.to(device=x_TD.device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    gate_TF, up_TF = F.grouped_mm(x_TD, w1_EFD.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    h_TF = F.silu(gate_TF) * up_TF * prob_T.unsqueeze(-1).to(x_TD.dtype)
    return F.grouped_mm(h_TF, w2_EDF.transpose(1, 2), offs=ends_E)


def grouped_mlp_reference(
    x_TD: Tensor, prob_T: Tensor, counts_E: Tensor, w1_EFD: Tensor, w2_EDF: Tensor
) -> Tensor:
    """The same, one expert after the other."""
    parts, start = [], 0
    for e, count in enumerate(counts_E.tolist()):
        rows = slice(start, start + count)
        gate_TF, up_TF = (x_TD[rows] @ w1_EFD[e].T).chunk(2, dim=-1)
        h_TF = F.silu(gate_TF) * up_TF * prob_T[rows, None].to(x_TD.dtype)
        parts.append(h_TF @ w2_EDF[e].T)
        start += count
    return torch.cat(parts)


GROUPED_MLP = {"torch": grouped_mlp, "loop": grouped_mlp_reference}
