"""From chat samples to packed rows: tokenizer, chat, documents, packing, rows, read in this order.

Shape letters: S = tokens in a row, N = segments in a row (documents, then pieces of padding).
"""
