"""Tables as plain text."""

from collections.abc import Iterable, Sequence


def text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as lines of text: the header, then the rows, with the columns two spaces apart.

    Args:
        header: the titles of the columns.
        rows: the cells of each row, as many as the header has.
    """
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
