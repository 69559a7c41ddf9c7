"""Flags of timm's that are left out say why."""

import pytest

from flashkat.cli.left_out import LEFT_OUT
from flashkat.cli.main import main


@pytest.mark.parametrize("flag", LEFT_OUT)
def test_a_flag_that_is_left_out_says_why(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "data", flag, "1"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{flag} is a flag of timm's that is left out here: {LEFT_OUT[flag].reason}" in err
