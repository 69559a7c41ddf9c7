"""Sum up what the rationals of a trained KAT have learned, for a row of the study's result."""

import statistics
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from flashkat.nn.learned.rationals import Learned
from flashkat.nn.starts import Start
from flashkat.tools.inspect.measures import measure

from ..parts.common import Row

__all__ = ["learned_functions"]

# A rational with a function per channel has hundreds.
_MOST_GROUPS = 16
_FIRST, _SECOND = "act1", "act2"


def learned_functions(state: Mapping[str, Tensor], start: Start) -> list[Row]:
    """Return a row for each rational of a KAT, with means over its groups, of at most 16 of them.

    Args:
        state: the model's state_dict.
        start: what its second rationals started as. The first ones started as the identity.

    Returns:
        Rows with the module's name, the known function that most groups are nearest to, the share of these groups, the
        difference from it, how far the groups moved from their start, and the slope at 0. All are on [-3, 3].
    """
    functions = {}
    for key, numerator in state.items():
        name, _, table = key.rpartition(".")
        if table == "numerator" and name.endswith((_FIRST, _SECOND)):
            tables = numerator, state[f"{name}.denominator"]
            groups = max(map(len, tables))
            own = (each.double().expand(groups, -1)[:: -(-groups // _MOST_GROUPS)] for each in tables)
            functions[name] = Learned("identity" if name.endswith(_FIRST) else start, *own)
    measures = measure(functions, {})
    rows = []
    for name in functions:
        found = [each for each in measures if each.layer == name]
        nearest, count = Counter(each.nearest for each in found).most_common(1)[0]
        means = {
            key: round(statistics.fmean(getattr(each, key) for each in found), 4)
            for key in ("distance", "moved", "slope_at_0")
        }
        rows.append({"layer": name, "nearest": nearest, "share": round(count / len(found), 3), **means})
    return rows
