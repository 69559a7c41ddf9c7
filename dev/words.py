"""Count the words per sentence of the prose in Markdown files: python dev/words.py [FILE ...].

Prints two lines per file. Fails if README.md has more than 150 lines, or its sentences more than 18 words on average.
Code blocks, tables, headings, pictures and the addresses of links are left out. So is text without an end mark, such as
an item of a list.
"""

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_WORDS = 150, 18
PARSER = MarkdownIt("commonmark").enable("table")


def sentences(text: str) -> list[str]:
    """Return the sentences of the prose in a Markdown text, in order."""
    return [sentence for block in _blocks(text) for sentence in _split(block)]


def words(sentence: str) -> int:
    """Count what stands between spaces and has a letter or a digit."""
    return sum(any(letter.isalnum() for letter in part) for part in sentence.split())


def _blocks(text: str) -> Iterator[str]:
    """Yield the text of each paragraph, list item or quotation."""
    tokens = PARSER.parse(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))
    for before, token in itertools.pairwise(tokens):
        if token.type == "inline" and before.type == "paragraph_open":
            yield "".join(map(_text, token.children or []))


def _text(token: Token) -> str:
    if token.type == "code_inline":
        return re.sub(r"[.!?](?=\s|$)", "", token.content)  # ends no sentence
    return {"text": token.content, "softbreak": " ", "hardbreak": " "}.get(token.type, "")


def _split(block: str) -> list[str]:
    """Split at end marks that no initial of a name has, and keep what ends in one."""
    parts = re.split(r"(?<=[.!?])(?<!\b[A-Z]\.)[\"')*]*\s+", block)
    return [part for part in parts if words(part) and part.rstrip("\"')* ").endswith((".", "!", "?", ":"))]


def main(names: list[str]) -> int:
    """Print a line per file, by default of all prose outside src/, and return the exit status."""
    paths = [Path(name) for name in names] or [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
    status = 0
    for path in paths:
        text = path.read_text()
        found = sentences(text)
        total, lines = sum(map(words, found)), len(text.splitlines())
        mean = total / max(len(found), 1)
        longest = max(found, key=words, default="")
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        print(f"{shown}: {lines} lines, {total} words, {len(found)} sentences, {mean:.1f} words a sentence")
        print(f"    longest, {words(longest)} words: {longest}")
        if path.name == "README.md" and (lines > MOST_LINES or mean > MOST_WORDS):
            print(f"    too long: at most {MOST_LINES} lines and {MOST_WORDS} words a sentence", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
