"""The ``flashkat`` command: flags with timm's names, defaults and meanings, and what they call."""
