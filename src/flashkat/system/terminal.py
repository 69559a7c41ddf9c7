"""Text for a terminal: what is printed cannot move the cursor, change colours or hide what was printed before."""

__all__ = ["printable", "printable_name"]

_MOST = 2000


def printable(text: str) -> str:
    """Return a text with escapes for what does not print, and without its middle where it is very long.

    Names of files come from strangers, and may hold the codes that terminals obey.
    """
    shown = "".join(
        sign if sign.isprintable() or sign in "\n\t" else sign.encode("unicode_escape").decode() for sign in text
    )
    half = _MOST // 2
    return shown if len(shown) <= _MOST else f"{shown[:half]} ... {shown[-half:]}"


def printable_name(name: str) -> str:
    """Return a file's name in one line, with escapes for what does not print."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")
