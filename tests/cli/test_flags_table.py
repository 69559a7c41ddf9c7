"""Every flag of timm's scripts is there or is left out with a reason, and the page says which."""

from pathlib import Path

import pytest
from parsing import flags_of

from flashkat.cli.flags_table import table
from flashkat.cli.left_out import LEFT_OUT

ROOT = Path(__file__).parents[2]
TIMM = [
    word
    for line in Path(__file__).with_name("timm_flags.txt").read_text().splitlines()
    if not line.startswith("#")
    for word in line.split()
]

OURS = flags_of("train") | flags_of("validate")


@pytest.mark.parametrize("flag", TIMM)
def test_every_flag_of_timms_is_accounted_for(flag):
    assert (flag in OURS) != (flag in LEFT_OUT)
    assert f"`{flag}`" in (ROOT / "docs/reference/flags.md").read_text()


def test_the_page_is_what_the_program_says():
    assert (ROOT / "docs/reference/flags.md").read_text() == table(), "make flags writes it anew"
