"""What labelled data are about: counts and shortages (`shares.py`), their page and pictures."""
