"""Benchmarks of the data backends: how fast they feed a training, and how much their images differ."""
