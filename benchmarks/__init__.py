"""Benchmarks: one file per question, one command each, results as JSON in ``results/``.

They run from a checkout (``python -m benchmarks.NAME``) and are no part of the installed package.
"""
