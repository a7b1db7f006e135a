"""Pairs of answers for DPO (Ring-Lite-Distill, sections 2.4 and 3.3).

offers.py reads prompts with answers, general.py and structure.py say which pairs each could give,
quotas.py which of these are taken, blend.py writes them with a report of all that was left out.
"""
