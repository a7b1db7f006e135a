"""What answers are worth: pure functions on texts."""
