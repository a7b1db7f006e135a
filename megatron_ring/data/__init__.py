"""From chat samples, or pairs of answers, to packed rows. Read in this order: tokenizer, chat,
format_spans, pairs, documents, packing, build, rows.

Shape letters: S = tokens in a row, N = segments in a row (documents, then pieces of padding).
"""
