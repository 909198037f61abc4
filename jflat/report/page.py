"""One self-contained HTML page: text, tables and pictures in a single file that reads well on a phone and in the dark.

No script and nothing from outside: pictures are embedded, the style is inline, and a content security policy in the
page forbids anything else. All text is escaped; wide tables scroll in a box of their own, so the page never does.
"""

import base64
import html
import io
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from jflat.core import check
from jflat.report.store import write_atomically
from jflat.report.tables import html_table

__all__ = ["Facts", "Picture", "Section", "Table", "write_page"]

_STYLE = """
:root { color-scheme: light dark;
  --text: #1b1f24; --soft: #59626c; --paper: #fdfdfc; --line: #d5d9de; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ea; --soft: #a3abb4; --paper: #15181c; --line: #3a4048; --link: #7ab7f0; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 52rem; background: var(--paper); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.2rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
p { margin: .7rem 0; white-space: pre-line; }
nav ul { margin: 0; padding-left: 1.2rem; }
a { color: var(--link); }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; max-width: 44rem; height: auto; background: #fff; border-radius: .4rem; }
figcaption, caption { color: var(--soft); font-size: .9rem; line-height: 1.45; text-align: left; }
figcaption { margin-top: .45rem; }
caption { caption-side: bottom; padding-top: .45rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; overflow-wrap: normal; }
tbody th { font-weight: 500; white-space: normal; min-width: 9rem; }
th.n, td.n { text-align: right; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .2rem .9rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Picture(NamedTuple):
    """A picture with its caption."""

    source: Any
    """A matplotlib figure, the path of a PNG file, or the bytes of one."""
    caption: str
    """What is seen, under the picture."""
    alt: str
    """What the picture says, for those who do not see it; never empty."""


class Table(NamedTuple):
    """A table of cells (`jflat.report.tables`)."""

    header: Sequence[str]
    """One heading a column."""
    rows: Sequence[Sequence[Any]]
    """The cells."""
    caption: str = ""
    """Shown under the table."""


class Facts(NamedTuple):
    """A list of names and values: configuration, versions."""

    items: dict[str, Any]
    """Value by name; a dictionary in it is written name.subname."""


class Section(NamedTuple):
    """A heading and what is under it, in order."""

    heading: str
    """The heading."""
    blocks: Sequence[str | Table | Picture | Facts]
    """Paragraphs (plain text; a line break stays one), tables, pictures, facts."""


def _png(source: Any) -> bytes:
    if hasattr(source, "savefig"):
        buffer = io.BytesIO()
        source.savefig(buffer, format="png", dpi=160)
        return buffer.getvalue()
    return source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()


def _picture(picture: Picture) -> str:
    check.require(picture.alt.strip() != "", "write_page", "alt", "must say what the picture shows", repr(picture.alt))
    content = _png(picture.source)
    is_png = content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 24
    check.require(is_png, "write_page", "source", "must be a PNG picture", f"{content[:8]!r}...")
    width, height = struct.unpack(">2I", content[16:24])
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{html.escape(picture.alt)}"><figcaption>{html.escape(picture.caption)}</figcaption></figure>'
    )


def _facts(items: dict[str, Any], prefix: str = "") -> str:
    lines = []
    for name, value in items.items():
        if isinstance(value, dict):
            lines.append(_facts(value, f"{prefix}{name}."))
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append(f"<dt>{html.escape(prefix + str(name))}</dt><dd>{html.escape(text)}</dd>")
    return "".join(lines)


def _block(block: str | Table | Picture | Facts) -> str:
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, Picture):
        return _picture(block)
    if isinstance(block, Facts):
        return f"<dl>{_facts(block.items)}</dl>"
    if isinstance(block, Table):
        label = html.escape(block.caption or "table")
        table = html_table(block.header, block.rows, block.caption)
        return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{table}</div>'
    raise ValueError(f"write_page: blocks must be text, Table, Picture or Facts; got {type(block).__name__}.")


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> pathlib.Path:
    """Write a page, in one step, and return its path.

    Args:
      path: of the .html file; folders are made if need be.
      title: of the page.
      sections: in order; from three on the page opens with a list of links to them.

    Raises:
      ValueError: for a block of another kind, a picture that is not PNG or has no alternative text, a ragged table.
        Nothing is written then.
    """
    contents = ""
    if len(sections) >= 3:
        links = "".join(f'<li><a href="#s{i}">{html.escape(s.heading)}</a></li>' for i, s in enumerate(sections))
        contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
    body = "\n".join(
        f'<section id="s{i}"><h2>{html.escape(section.heading)}</h2>\n'
        + "\n".join(map(_block, section.blocks))
        + "\n</section>"
        for i, section in enumerate(sections)
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{html.escape(title)}</h1>\n{contents}\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    target = pathlib.Path(path)
    write_atomically(target, lambda file: file.write(page.encode()))
    return target
