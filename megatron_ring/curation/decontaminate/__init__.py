"""Is a benchmark's item in a training record? Known without the benchmark's text."""
