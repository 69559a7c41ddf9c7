from flashkat.tools.convert.conversion import Converted, Left, Report


def row(name, error=0.001, channels=16):
    return Converted(name, "GELU", "gelu", channels, -1, 8, (-3.0, 3.0), error)


def test_report_is_a_table():
    rows = (row("blocks.0.act", 0.001), row("blocks.11.act", 0.0035), row("head.act", 0.25, 1024))
    left = (Left("blocks.0.gate", "Sigmoid", "it is a gate"), Left("blocks.1.gate", "Sigmoid", "it is a gate"))
    assert str(Report(rows, left, 0.0123, 2.5, ("a note",))).splitlines() == [
        "converted                was   starts as  channels  dim  groups  fit on   error",
        "blocks.*.act (2 places)  GELU  gelu       16        -1   8       [-3, 3]  0.0035",
        "head.act                 GELU  gelu       1024      -1   8       [-3, 3]  0.25",
        "left: blocks.*.gate (2 places) (Sigmoid): it is a gate",
        "a note",
        "3 rationals, 2 left",
        "largest change of the output on the example: 0.012, in outputs up to 2.5",
    ]


def test_report_of_one_place():
    assert str(Report((row("act"),), (), 0.0, 1.0)).splitlines()[-2] == "1 rational, 0 left"
