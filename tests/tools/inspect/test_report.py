"""The report: whole, escaped, and the same in a browser."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess

import pytest
import torch
from torch import nn

from flashkat import GroupRational
from flashkat.nn.learned.rationals import learned
from flashkat.tools.inspect.history import Snapshot
from flashkat.tools.inspect.measures import measure
from flashkat.tools.inspect.report import page
from flashkat.tools.inspect.subject import Subject

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">{{DATA}}\u2028"


def stirred(model, size=0.1):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, GroupRational):
            for table in module.tables:
                table.data += size * torch.randn(table.shape, generator=generator)
    return model


def net(groups=4):
    return nn.Sequential(GroupRational(16, groups, start="gelu"), GroupRational(16, groups))


def report(model=None, name="net", file="last.pth.tar", inputs=None, prefix="", columns=None, before=()):
    model = stirred(net()) if model is None else model

    def renamed(found):
        return {f"{prefix}{key}": value for key, value in found.items()}

    functions = renamed(learned(model))
    subject = Subject(model, name, {}, functions, renamed(inputs or {}))
    series = [Snapshot(f"after epoch {number}", renamed(learned(each))) for number, each in enumerate(before, start=1)]
    series.append(Snapshot("after epoch 9", functions, is_given=True))
    return page(subject, file, measure(functions, subject.inputs), series, columns or {})


class Parsed(html.parser.HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.path = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "input"):
            self.path.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.path.pop()[0] == tag

    def handle_data(self, data):
        if self.path:
            self.path[-1][2].append(data)

    def of(self, tag):
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


def data_of(text):
    (found,) = [content for attributes, content in Parsed(text).of("script") if attributes.get("id") == "data"]
    return json.loads(found)


def test_the_page_is_whole():
    parsed = Parsed(report())
    assert parsed.path == []
    assert [text for _, text in parsed.of("title")] == ["net: learned functions"]
    assert "last.pth.tar, after epoch 9. 2 rationals with 8 functions." in [text for _, text in parsed.of("p")]
    assert len(parsed.of("tr")) == 9
    assert "No group is dead or exploding." in [text for _, text in parsed.of("p")]


def test_nothing_is_fetched():
    text = report(inputs={"0": torch.randn(4, 100)})
    for attributes in (attributes for _, attributes, _ in Parsed(text).elements):
        assert not {"src", "href", "srcset", "data", "action", "style"} & attributes.keys()
    assert "url(" not in text
    assert "@import" not in text
    assert "fetch(" not in text
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]


def test_no_script_runs_but_the_pages_own():
    parsed = Parsed(report())
    (policy,) = [each["content"] for each, _ in parsed.of("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none';")
    (script,) = [text for attributes, text in parsed.of("script") if not attributes]
    ((_, style),) = parsed.of("style")
    for kind, content in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_data_are_the_functions():
    model, inputs = stirred(net()), {"0": torch.randn(4, 1000)}
    data = data_of(report(model, inputs=inputs, before=[net()], columns={"epoch": [0.0], "lr": [None]}))
    assert data["steps"] == ["after epoch 1", "after epoch 9"]
    assert data["now"] == 1
    assert data["curves"] == {"epoch": [0], "lr": [None]}
    first, second = data["layers"]
    assert (first["name"], first["start"]["name"]) == ("0", "gelu")
    for number, each in enumerate((net(), model)):
        for shown, (a, b) in zip(first["rows"][number], learned(each)["0"].rows, strict=True):
            assert shown == [pytest.approx(a, rel=1e-6), pytest.approx(b, rel=1e-6)]
    assert [sum(counts) for counts in first["histograms"]] == pytest.approx([1000] * 4, abs=10)
    assert second["histograms"] is None
    assert second["x"] == [-3, 3]
    assert [group["group"] for group in second["groups"]] == [0, 1, 2, 3]
    assert set(second["known"]) == {group["nearest"] for group in second["groups"]}
    assert second["groups"][1]["python"].count("abs(x)") == 4


def test_names_of_strangers_are_text():
    text = report(
        name=HOSTILE,
        file=HOSTILE,
        prefix=HOSTILE,
        columns={"epoch": [0.0], HOSTILE: [1.0], f"{HOSTILE}loss": [1.0]},
    )
    parsed = Parsed(text)
    assert len(parsed.of("script")) == 2
    assert parsed.of("img") == []
    assert parsed.of("h1")[0][1] == HOSTILE
    assert data_of(text)["layers"][0]["name"] == f"{HOSTILE}0"
    assert HOSTILE in data_of(text)["curves"]
    assert "<img" not in text


def test_of_many_groups_those_that_moved_most_are_shown():
    model = nn.Sequential(GroupRational(64, 64, share_numerator=False))
    with torch.no_grad():
        model[0].numerator[7:27, 1] = torch.linspace(2, 3, 20)
    text = report(model)
    (layer,) = data_of(text)["layers"]
    assert [group["group"] for group in layer["groups"]] == list(range(11, 27))
    assert len(layer["rows"][0]) == 16
    assert "1 rationals with 64 functions. Those of the 16 groups that moved most are shown" in text


def test_groups_are_sorted_by_how_far_they_moved():
    model = nn.Sequential(GroupRational(8, 4, share_numerator=False))
    with torch.no_grad():
        model[0].numerator[:, 1] = torch.tensor([1.1, 3.0, 1.0, -1.0])
    cells = [text for _, text in Parsed(report(model)).of("td")]
    assert cells[1::11] == ["1", "3", "0", "2"]


def test_what_is_not_finite_is_flagged():
    model = net()
    with torch.no_grad():
        model[1].denominator[2, 0] = torch.nan
    text = report(model)
    assert "Flagged: 1 group 2 (not finite)." in text
    group = data_of(text)["layers"][1]["groups"][2]
    assert (group["moved"], group["flags"]) == (None, ["not finite"])
    assert Parsed(text).of("td")[1][1] == "2"


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_draws_it(tmp_path):
    """Names of strangers do nothing there either."""
    model = stirred(net())
    with torch.no_grad():
        model[1].numerator.fill_(torch.nan)
    (tmp_path / "report.html").write_text(
        report(
            model,
            name=HOSTILE,
            prefix=HOSTILE,
            inputs={"0": torch.randn(4, 100)},
            columns={"epoch": [0.0, 1.0], "train_loss": [2.0, 1.0], f"{HOSTILE}loss": [1.0, None]},
            before=[net()],
        )
    )
    shown = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            f"file://{tmp_path / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    parsed = Parsed(shown)
    assert parsed.of("title")[0][1].startswith("</script>")
    assert parsed.of("img") == []
    kinds = [attributes.get("class") for attributes, _ in parsed.of("path")]
    # Four groups of each rational, and two curves of the run.
    assert kinds.count("group") == 4 + 4 + 2
    lines = [attributes["d"] for attributes, _ in parsed.of("path") if attributes.get("class") == "group"]
    assert [line.count("L") for line in lines] == [96] * 4 + [0] * 4 + [1, 0]
    assert "NaN" not in "".join(lines)
    assert len(parsed.of("rect")) == 48
    assert [text for _, text in parsed.of("output")] == ["after epoch 9"]
    nearest = [
        attributes["d"].count("L") for attributes, _ in parsed.of("path") if attributes.get("class") == "nearest-line"
    ]
    assert nearest == [96, 0]
