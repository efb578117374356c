"""Tables as plain text."""

from collections.abc import Sequence


def text(*rows: Sequence[str]) -> str:
    """Returns rows as lines of text, with the columns aligned and two spaces apart.

    Args:
        rows: the cells of each row; all rows have as many. The first row may be the header.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
