"""Several checkpoints beside each other: Tables 2 and 3 of the report. `tables.py` first."""
