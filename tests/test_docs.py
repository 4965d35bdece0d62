"""Pages of docs/: links lead somewhere, and what is written from the sources is up to date."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cubelet.cli.lightning_cli import compose
from cubelet.common.errors import UserError

DOCS = Path(__file__).parents[1] / "docs"
PLACEHOLDERS = ("NAME", "…", "MODEL", "mine.yaml", "my_", "/data/", " S ", "--help")  # what a reader puts in


def shown_options():
    """Options of `cubelet fit` that a page written by hand shows, in a block or within a line, without duplicates."""
    shown = []
    for page in (DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        if "nothing here is typed by hand" in text or page.name == "api.md":
            continue
        commands = re.findall(r"^(?:\.venv/bin/)?cubelet fit([^#\n]*)", text, flags=re.MULTILINE)
        commands += re.findall(r"`cubelet fit ([^`]*)`|`(--(?:model|data|callbacks|config)[.=][^`]*=[^`]*)`", text)
        shown += [" ".join(c) if isinstance(c, tuple) else c for c in commands]
    return [c for c in dict.fromkeys(" ".join(c.split()) for c in shown) if c and not any(p in c for p in PLACEHOLDERS)]


def refusal(options):
    """Why no experiment takes these options: neither the default nor one of those a page may speak of; else None."""
    said = ""
    for base in ([], ["--config=synthetic"], ["--config=speech"]):
        try:
            model = compose([*base, *shlex.split(options)])["model"]
        except UserError as error:
            said = said or str(error)
            continue
        several = [given for key in ("rotary", "block") if isinstance(given := model.get(key), (list, tuple))]
        return "a list of one, which no model takes" if any(len(given) < 2 for given in several) else None
    return said


@pytest.mark.slow
def test_options_that_pages_show_are_accepted():
    shown = shown_options()
    assert "--model.rotary=QuaternionRotary --model.rotary.base=500" in shown
    assert {options: said for options in shown if (said := refusal(options))} == {}


def test_links_between_pages_lead_somewhere():
    gone = [
        f"{page.name}: {target}"
        for page in DOCS.glob("*.md")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (DOCS / target).exists()
    ]
    assert not gone


def test_the_readme_shows_pictures_and_names_pages_that_are_there():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\((?!https?:|#)([^)#]+)|srcset=\"([^\"]+)|src=\"([^\"]+)", text)
    places = [next(filter(None, groups)) for groups in named]
    assert sum(place.endswith(".svg") for place in places) == 3
    assert not [place for place in places if not (DOCS.parent / place).exists()]


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index]


def test_the_api_page_is_made_from_the_sources_without_torch(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, r'{DOCS}'); import build; page = build.api_page()\n"
        "assert 'torch' not in sys.modules\nprint(page)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "### QuaternionRotary\n\n`cubelet.models.rotary.QuaternionRotary(dims, heads" in done.stdout
    assert done.stdout.count("\n### ") >= 30
