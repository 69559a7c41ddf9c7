"""What loaders and data sets that stand around another one have in common."""

from typing import Any

__all__ = ["Around"]


class Around:
    """Has the attributes of the object that stands in its attribute ``inside``, where it has none of its own."""

    inside = "loader"

    def __getattr__(self, name: str) -> Any:
        if name == self.inside:  # not set yet, while this is made or copied
            raise AttributeError(name)
        return getattr(getattr(self, self.inside), name)
