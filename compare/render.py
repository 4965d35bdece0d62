"""Two forms of a report's blocks: Markdown, and one HTML page that holds its pictures."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

from .blocks import PICTURES, Block, Heading, Links, ListOf, Picture, Preformatted, Table, Text
from .statistics import HELPS, HURTS

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2328; --faint: #59636e; --line: #d9dee3; --soft: #f6f8fa;
  --helps: #0757c2; --hurts: #9a3d00; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --line: #30363d;
  --soft: #161b22; --helps: #79b8ff; --hurts: #ffa657; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; width: 100%; }
th, td { padding: .35rem .45rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th { color: var(--faint); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.words th, .words td { text-align: left; white-space: normal; } a { color: var(--helps); }
.helps { color: var(--helps); font-weight: 600; } .hurts { color: var(--hurts); font-weight: 600; }
.alarm { border: 2px solid var(--hurts); color: var(--hurts); padding: .7rem 1rem; font-weight: 600; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0; overflow-x: auto; } figure img { min-width: 36rem; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .78rem; overflow-wrap: normal; }
small, .faint { color: var(--faint); }
"""


def to_markdown(blocks: Iterable[Block], folder: str = "", level: int = 1) -> str:
    """Blocks as Markdown; links to runs are left out, since a document is read elsewhere than its runs lie.

    Args:
        blocks: of a report.
        folder: where pictures lie, relative to the file, with a slash at its end.
        level: of the first heading; the others are one lower.
    """
    parts = []
    for block in blocks:
        match block:
            case Heading(text, top):
                parts.append(f"{'#' * (level if top else level + 1)} {text}")
            case Text(text, kind):
                parts.append({"alarm": f"> **{text}**", "caution": f"> {text}"}.get(kind, text))
            case ListOf(items):
                parts.append("\n".join(f"- {item}" for item in items))
            case Table():
                parts.append(table_to_markdown(block))
            case Picture(name):
                dark, light = f"{folder}{name}-dark.png", f"{folder}{name}-light.png"
                parts.append(
                    f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
                    f'<img alt="{PICTURES[name]}" src="{light}"></picture>'
                )
            case Preformatted(text):
                parts.append(f"```\n{text}\n```")
            case Links():
                pass
    return "\n\n".join(parts) + "\n"


def table_to_markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    lines = ["| " + " | ".join(table.head) + " |", "|" + "---|" * len(table.head)]
    return "\n".join(lines + ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in table.rows])


def to_html(blocks: Iterable[Block], title: str, folder: Path) -> str:
    """Blocks as one HTML page, into which the pictures of `folder` are put; it fetches nothing."""
    text = html.escape
    body = []
    for block in blocks:
        match block:
            case Heading(words, top):
                body.append(f"<h1>{text(words)}</h1>" if top else f"<h2>{text(words)}</h2>")
            case Text(words, kind):
                css = {"alarm": ' class="alarm"', "caution": ' class="alarm"', "faint": ' class="faint"'}.get(kind, "")
                body.append(f"<p{css}>{text(words)}</p>")
            case ListOf(items):
                body.append("<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>")
            case Table():
                body.append(_table_to_html(block))
            case Picture(name):
                light, dark = (
                    base64.b64encode((folder / f"{name}-{theme}.png").read_bytes()).decode()
                    for theme in ("light", "dark")
                )
                body.append(
                    "<figure><picture>"
                    f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
                    f'<img alt="{text(PICTURES[name])}" src="data:image/png;base64,{light}"></picture></figure>'
                )
            case Preformatted(words):
                body.append(f"<pre>{text(words)}</pre>")
            case Links(items):
                links = "".join(f'<li><a href="{text(path)}">{text(name)}</a></li>' for name, path in items)
                body.append(f"<details><summary>{len(items)} folders</summary><ul>{links}</ul></details>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _table_to_html(table: Table) -> str:
    def cell(value: str) -> str:
        kind = f' class="{value}"' if value in (HELPS, HURTS) else ""
        return f"<td{kind}>{html.escape(value)}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.rows)
    kind = ' class="words"' if table.is_text else ""
    return f'<div class="wide"><table{kind}><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
