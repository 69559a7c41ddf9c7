"""Tools around training: a built-in data set, plots of learned functions, operation counts, an installation check."""
