"""What a change did: causal effects from a few randomized rows or runs and a long history."""
