"""Shared parts of the benchmarks: timers, results, contenders and their kernels."""
