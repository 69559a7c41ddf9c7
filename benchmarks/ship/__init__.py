"""Benchmarks of what `flashkat export` writes."""
