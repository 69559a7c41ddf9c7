"""The settings of the launches hold together. test_package.py imports them without Triton."""

from flashkat.ops.layout import VECTOR_BYTES
from flashkat.ops.triton import settings


def is_power_of_two(number):
    return number & (number - 1) == 0


def test_runs_and_sums_divide_into_lanes():
    assert all(settings.LANES % run == 0 for run in settings.RUNS)
    assert list(settings.RUNS) == sorted(settings.RUNS, reverse=True)
    for name in ("LANES", "SUM_BLOCK", "SUM_WARPS", "SUM_PROGRAMS", "SUM_COLUMNS", "MOST_ROW_WARPS"):
        assert is_power_of_two(getattr(settings, name)), name


def test_programs_are_shared_out_evenly_among_four_schedulers():
    for name in ("FORWARD_PROGRAMS", "BACKWARD_PROGRAMS", "BACKWARD_PROGRAMS_WITH_PAIRS"):
        assert getattr(settings, name) % 4 == 0, name


def test_a_row_of_the_most_channels_fits():
    from flashkat.ops.add_norm_rational import MOST_CHANNELS

    lanes = settings.LANES * settings.MOST_ROW_WARPS
    assert lanes * settings.ROW_CHUNKS * (VECTOR_BYTES // 4) >= MOST_CHANNELS
