"""Pass on the attributes of a loader or data set that another one wraps."""

from typing import Any

__all__ = ["Around"]


class Around:
    """Gives the attributes that it lacks from the object that it wraps.

    ``inside`` is the name of the attribute that holds this object.
    """

    inside = "loader"

    def __getattr__(self, name: str) -> Any:
        if name == self.inside:  # not set yet, while this is made or copied
            raise AttributeError(name)
        return getattr(getattr(self, self.inside), name)
