"""The command ``flashkat inspect``, and what it shares with ``flashkat plot``."""
