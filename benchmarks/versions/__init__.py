"""Benchmarks of this version against an earlier one."""
