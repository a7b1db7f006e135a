"""IFEval: 541 prompts with instructions that a program can check, and their accuracies."""

from megatron_ring.evaluation.ifeval.task import IFEval

__all__ = ["IFEval"]
