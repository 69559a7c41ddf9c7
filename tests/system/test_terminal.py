"""Names of files cannot make a terminal do anything."""

from flashkat.system.terminal import printable, printable_name


def test_what_prints_stays():
    assert printable("Lösung 1.png\t2\n") == "Lösung 1.png\t2\n"


def test_codes_of_terminals_are_escaped():
    assert printable("a\x1b[2Jb\r\x07") == "a\\x1b[2Jb\\r\\x07"


def test_a_name_is_one_line():
    assert printable_name("a\nb\tc") == "a\\nb\\tc"


def test_the_middle_of_a_long_text_is_left_out():
    shown = printable("a" * 5000 + "z")
    assert len(shown) < 2100
    assert shown.endswith("z")
