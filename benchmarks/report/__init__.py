"""Figures and tables from the committed results."""
