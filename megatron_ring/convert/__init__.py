"""Hugging Face safetensors folder <-> Megatron distributed checkpoint, as data and in a stream.

Read in this order: `ops` (rules: which rows go where), `ling` (the table of one model family),
`safetensors_file` and `torch_dist` (the two formats on disk, read and written piece by piece),
`sources` (one side's tensors under the other side's names), `folder` (everything that is not a
tensor), `transfer` (import and export), `reference` (the model in plain torch, an oracle).
"""
