"""Tools around training: data sets, plots, operation counts, an installation check, conversions of other models."""
