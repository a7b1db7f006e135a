"""Labels of the taxonomy: `stage.py` first; what the source says, rules, text, a judge."""
