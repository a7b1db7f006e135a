"""A corpus that a small model can learn from: problems, facts, instructions, calls of tools."""
