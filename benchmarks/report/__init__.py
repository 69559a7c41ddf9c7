"""Make figures and tables from the committed results."""
