"""Side-by-side measurements against named peers; `python -m benchmarks.data` and the like."""
