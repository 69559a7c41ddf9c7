"""The machine under a run: devices, compilation, processes, random states, files."""
