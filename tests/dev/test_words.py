"""The README is short, and what counts its words counts prose alone."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("words", ROOT / "dev" / "words.py")
words = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(words)

PAGE = """---
title: not this
---
# Not a heading

One two [three](https://not.this.one) `code. four`. M. Raffel and
L. Chen wrote *it*.

- An item without an end mark
- A whole item: this.

| not | a table. |
| --- | --- |

```sh
not code.
```
"""


def test_sentences_are_those_of_the_prose():
    assert words.sentences(PAGE) == [
        "One two three code four.",
        "M. Raffel and L. Chen wrote it.",
        "A whole item: this.",
    ]
    assert [words.words(sentence) for sentence in words.sentences(PAGE)] == [5, 7, 4]


def test_the_readme_is_short(capsys):
    assert words.main([str(ROOT / "README.md")]) == 0
    assert capsys.readouterr().out.startswith("README.md: ")


def test_a_long_readme_fails(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("A line.\n" * 151)
    assert words.main([str(readme)]) == 1
    readme.write_text("word " * 18 + "word.")
    assert words.main([str(readme)]) == 1
    assert "too long" in capsys.readouterr().err
