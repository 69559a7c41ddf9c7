"""``flashkat export`` to programs and model folders, for runtimes without this package."""
