"""What the ahead-of-time lint compiles: one entry for each kernel configuration that is shipped.

A module of Triton kernels lists its own in `builds(architecture)`; tools/lint_kernels.py compiles
them without a GPU and looks at what came out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Build:
    name: str
    kernel: Any  # the function under triton.jit
    signature: Mapping[str, str]  # argument -> "*bf16", "i32", "tensordesc<bf16[128, 64]>", ...
    constexprs: Mapping[str, Any]
    warps: int
    stages: int
    tensor_cores: bool = False  # wgmma from 9.0, mma.sync before
    tma: bool = False  # from 9.0: bulk tensor copies
