"""Answers of a model as it lies on its ranks, whatever the layout: tokens in, drawn tokens out."""
