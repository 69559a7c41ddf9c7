"""Benchmarks: a file and a command for each question, with results as JSON in ``results/``.

They run from a checkout (``python -m benchmarks.NAME``). The installed package does not contain them.
"""
