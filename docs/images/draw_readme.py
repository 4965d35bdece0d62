"""Pictures of the README, from a run: its losses in one chart, and what its terminal showed.

python docs/images/draw_readme.py runs/NAME recording   # recording: what a terminal of 80 columns received

Both are SVG without anything outside them; of the terminal every line that stood there in the end is drawn, and of the
line that renews itself some of its states.
"""

import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from cubelet.callbacks.line_chart import line_chart  # noqa: E402
from cubelet.callbacks.run_report import read_metrics  # noqa: E402

INK = {"light": ("#1c1c1c", "#dcdcd8", "#1f5fa8", "#c4560b"), "dark": ("#e4e4e0", "#3b3d3f", "#7db3ee", "#f0a06a")}
STATES = 4  # of the progress line
COLUMNS, LETTER, LINE = 80, 8.43, 19


def loss_chart(folder: Path, scheme: str) -> str:
    """Return the chart of training and validation loss as a file of its own."""
    columns = read_metrics(folder / "metrics.csv")
    losses = {"train": columns["train_loss"], "validation": columns["val_loss"]}
    ink, faint, first, second = INK[scheme]
    style = (
        f"<style>text {{ fill: {ink}; font: 12px system-ui, sans-serif }} .grid {{ stroke: {faint} }} "
        f".line {{ fill: none; stroke-width: 1.8 }} .line.c0 {{ stroke: {first} }} .line.c1 {{ stroke: {second} }} "
        f".dot.c0 {{ fill: {first} }} .dot.c1 {{ fill: {second} }}</style>"
    )
    return (
        line_chart(losses, "loss (nats a character)")
        .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        .replace(">", f">{style}", 1)
        + "\n"
    )


def screen_lines(recording: str) -> list[str]:
    """Return the lines of a recording, of the progress line a few states."""
    states = re.findall(r"\r\x1b\[K(step [^\r\n]*)", recording)
    kept = [states[round(i * (len(states) - 1) / (STATES - 1))] for i in range(STATES)]
    text = re.sub(r"\r\x1b\[K[^\r\n]*", "", recording)  # states that were overwritten
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\x1b[K", "").replace("\r", "")
    lines = [line for line in text.split("\n") if line]
    end = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))  # what is said at the end
    return ["$ cubelet fit", *lines[:end], *kept, *lines[end:]]


def terminal_picture(recording: str) -> str:
    """Return a picture of a terminal; what is wider than 80 columns goes on in the next line, as it does there."""
    lines = [
        line[start : start + COLUMNS]
        for line in screen_lines(recording)
        for start in range(0, max(len(line), 1), COLUMNS)
    ]
    width, height = round(COLUMNS * LETTER) + 32, LINE * len(lines) + 44
    rows = []
    for place, line in enumerate(lines):
        faint = ' class="faint"' if line[0] == "─" else ""
        rows.append(f'<text x="16" y="{44 + LINE * place}" xml:space="preserve"{faint}>{escape(line)}</text>')
    style = (
        "<style>text { font: 14px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #e4e4e0; "
        "white-space: pre } .faint { fill: #7fce97 }</style>"
    )
    dots = "".join(f'<circle cx="{18 + 18 * i}" cy="16" r="5" fill="#55585b"/>' for i in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="what cubelet fit shows in a terminal">{style}'
        f'<rect width="{width}" height="{height}" rx="8" fill="#18191a"/>{dots}{"".join(rows)}</svg>\n'
    )


def main() -> None:
    """Write the three pictures."""
    folder = Path(sys.argv[1])
    recording = Path(sys.argv[2]).read_bytes().decode("utf-8", errors="replace")  # with its carriage returns
    here = Path(__file__).parent / "readme"
    here.mkdir(exist_ok=True)
    for scheme in INK:
        (here / f"loss-{scheme}.svg").write_text(loss_chart(folder, scheme), encoding="utf-8")
    (here / "terminal.svg").write_text(terminal_picture(recording), encoding="utf-8")


if __name__ == "__main__":
    main()
