"""Pages of docs/: links lead somewhere, and what is written from the sources is up to date."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


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
