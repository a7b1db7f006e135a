"""What samples are made of, and what may be done to them: pure functions on texts."""
