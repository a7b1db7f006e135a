"""Megatron-Ring: a fine-grained Mixture-of-Experts model becomes a reasoning model."""

import warnings

# megatron-core says at every import which optional packages are missing; doctor.py says it once.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"megatron\.core")
# It still calls collectives by names that torch renames.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

__version__ = "0.1.0"
