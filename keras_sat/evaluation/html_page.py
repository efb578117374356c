"""The parts of a page: a document that loads no other files, tables, and plots that follow dark mode."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Colours of series, for light and for dark backgrounds: plots are drawn in the former.
SERIES = (
    ("#0063b2", "#6cb6ff"),
    ("#b3400e", "#ff9e64"),
    ("#1a7f4b", "#5fd08f"),
    ("#7a3fc4", "#c9a2ff"),
    ("#6e5a00", "#e0c34c"),
    ("#9a2257", "#ff8fc0"),
)
_COLOURS = "".join(f"--series-{number}: {light}; " for number, (light, _) in enumerate(SERIES))
_DARK_COLOURS = "".join(f"--series-{number}: {dark}; " for number, (_, dark) in enumerate(SERIES))
_STYLE = f"""
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; {_COLOURS}
  --text: #1b1f24; --back: #fff; --soft: #f3f5f7; --line: #c4cad1; --quiet: #545d68; --alarm: #a3200d; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK_COLOURS}
  --text: #e4e8ec; --back: #14181d; --soft: #1f252c; --line: #47505b; --quiet: #a7b0ba; --alarm: #ff9b8a; }} }}
* {{ box-sizing: border-box; }}
body {{ max-width: 66rem; margin: 0 auto; padding: 1rem; color: var(--text); background: var(--back);
  overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }} h2 {{ font-size: 1.25rem; margin: 2.25rem 0 .75rem; }}
h3 {{ font-size: 1rem; margin: 1.5rem 0 .5rem; }}
.wide {{ overflow-x: auto; overflow-wrap: normal; }}
table {{ border-collapse: collapse; width: max-content; max-width: max(100%, 44rem); }}
th, td {{ text-align: left; padding: .3rem 1rem .3rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }}
th {{ border-bottom: 2px solid var(--line); vertical-align: bottom; }}
small, figcaption, .quiet {{ font-size: .875rem; color: var(--quiet); }} td small {{ white-space: nowrap; }}
dl {{ display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); gap: .2rem 1.25rem; margin: 1rem 0; }}
dt {{ color: var(--quiet); }} dd {{ margin: 0; }}
.verdict {{ background: var(--soft); border-left: .3rem solid var(--series-0); padding: .75rem 1rem; margin: 1rem 0; }}
.verdict.alarm {{ border-color: var(--alarm); }} .alarm strong {{ color: var(--alarm); }}
.verdict p {{ margin: .5rem 0; }} .verdict table {{ max-width: 100%; }}
.large {{ font-size: 1.4rem; font-weight: 600; white-space: nowrap; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem;
  margin-top: 1.5rem; }}
figure {{ margin: 0; min-width: 0; }} figure svg {{ max-width: 100%; height: auto; fill: currentColor; }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem; }}
.three {{ display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; }}
.three img {{ display: block; width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }}
summary {{ cursor: pointer; }} pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft);
  padding: .75rem; font-size: .875rem; }}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Html(str):
    """Text that is HTML already. Other text is escaped."""


def document(title: str, parts: Iterable[Html]) -> str:
    """Returns a page that loads no other files, with a light and a dark style.

    Args:
        title: title of the page, which is also its first heading.
        parts: the elements below the heading.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join([element("h1", title), *parts])
        + "\n</body>\n</html>\n"
    )


def escaped(value: Any) -> Html:
    """Returns a value as HTML: `Html` unchanged, anything else as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(tag: str, *contents: Any, style: str = "") -> Html:
    """Returns an element. `style` is its class in the style sheet; contents that are not `Html` are escaped."""
    attribute = f' class="{style}"' if style else ""
    return Html(f"<{tag}{attribute}>{''.join(map(escaped, contents))}</{tag}>")


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """Returns a table, which scrolls inside itself if the window is narrower."""
    lines = [element("tr", *(element("th", cell) for cell in header))]
    lines += [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return Html('<div class="wide" tabindex="0"><table>\n' + "\n".join(lines) + "\n</table></div>")


def definitions(entries: dict[str, str]) -> Html:
    """Returns a list of names and their values."""
    return element("dl", *(Html(element("dt", name) + element("dd", value)) for name, value in entries.items()))


def details(summary: str, text: str) -> Html:
    """Returns preformatted text that is folded away."""
    return element("details", element("summary", summary), element("pre", text))


def figure(plot: Any, caption: str) -> Html:
    """Returns a plot as SVG inside the page. Its black is the colour of the page's text, and its colours are SERIES.

    Args:
        plot: a figure of matplotlib, drawn in black and in the light colours of SERIES.
        caption: text below the plot.
    """
    svg = rendered(plot, "svg", transparent=True).decode()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(caption)}"', 1)
    svg = svg.replace("#000000", "currentColor")
    for number, (light, _) in enumerate(SERIES):
        svg = svg.replace(light, f"var(--series-{number})")
    return element("figure", Html(svg), element("figcaption", caption))


def rendered(plot: Any, kind: str, transparent: bool = False) -> bytes:
    """Returns a figure of matplotlib as the bytes of a file. `kind` is "svg" or "png"."""
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    plot.savefig(file, format=kind, dpi=150, metadata=metadata, transparent=transparent)
    return file.getvalue()


def image(pixels: np.ndarray, alt: str) -> Html:
    """Returns an image inside the page.

    Args:
        pixels: [height, width, channels], values 0..255; they are rounded and clipped.
        alt: text for readers who cannot see it.
    """
    encoded = tf.io.encode_png(tf.cast(np.clip(np.round(pixels), 0, 255), tf.uint8)).numpy()
    source = f"data:image/png;base64,{base64.b64encode(encoded).decode()}"
    return Html(f'<img alt="{html.escape(alt)}" src="{source}">')
