"""Latency suite: `pytest bench/` (pytest-benchmark); `python -m bench.bars` prints the bars."""
