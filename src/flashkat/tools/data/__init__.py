"""The commands of ``flashkat data``."""
