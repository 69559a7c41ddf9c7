"""The parts of ``flashkat fit``."""
