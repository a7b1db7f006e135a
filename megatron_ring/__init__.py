"""Megatron-Ring: from a fine-grained Mixture-of-Experts model to a reasoning model, on Megatron-Core."""

__version__ = "0.1.0"
