"""What the documentation says, tried: examples in docstrings, the README's Python, and an example for every class."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("common", "testing", "models", "optimizers", "datamodules", "callbacks", "lightning_modules", "cli", "compare")
PUBLIC = (
    "models",
    "models.attention",
    "models.blocks",
    "models.rotary",
    "models.embeddings",
    "optimizers",
    "datamodules",
    "callbacks",
    "lightning_modules",
)


def modules() -> list[str]:
    """Dotted names, below `cubelet`, of the modules whose docstrings hold an example."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    with_examples = [path for path in paths if ">>>" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in with_examples]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"cubelet.{name}")
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried > 0
    assert failed == 0


def public_classes() -> list[type]:
    found: dict[type, None] = {}
    for room in PUBLIC:
        module = importlib.import_module(f"cubelet.{room}")
        for name in getattr(module, "__all__", ()):
            item = getattr(module, name)
            if isinstance(item, type) and not issubclass(item, Exception):
                found.setdefault(item)
    return list(found)


@pytest.mark.parametrize("item", public_classes(), ids=lambda item: item.__qualname__)
def test_every_public_class_shows_an_example(item):
    text = inspect.getdoc(item) or ""
    assert text == inspect.cleandoc(item.__doc__ or ""), f"{item.__qualname__} has no docstring of its own"
    assert "Example:" in text, f"{item.__qualname__} has no example"
    assert ">>>" in text.partition("Example:")[2]


def code_blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_python_in_the_documents_runs(document, tmp_path, monkeypatch):
    """Each block as it stands, but for the number of steps."""
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(document, "python")
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(re.sub(r"max_steps=\d+", "max_steps=2", block), document, "exec"), names)


def test_commands_of_the_readme_name_files_that_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:configs|experiments|benchmarks|docs|tests)/[\w/]+\.(?:yaml|py|md)\b", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(
    "path", sorted(p.relative_to(ROOT).as_posix() for r in ROOMS for p in (ROOT / r).rglob("*.py"))
)
def test_every_module_says_what_it_is_for_and_stays_short(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, "split it: a file holds one idea"
    if text.strip():
        assert text.startswith('"""'), "a module opens with a docstring"
