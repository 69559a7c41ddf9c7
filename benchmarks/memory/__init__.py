"""The benchmark of memory."""
