"""What a run leaves behind and shows: its folder, summary, progress and logs elsewhere."""
