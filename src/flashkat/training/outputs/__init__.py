"""The output of a run: its folder, summary, progress and logs."""
