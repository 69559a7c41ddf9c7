"""The machine that a run uses: devices, compilation, processes, random states, files."""
