"""API page, `docs/api.md`, from the docstrings in the sources; offline, without importing torch.

python docs/build.py           # writes docs/api.md
python docs/build.py --check   # exit status 1 where it is out of date
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from cubelet.cli.catalog import KINDS, Component, options_of, read_classes, read_components  # noqa: E402
from cubelet.common.shipped_files import PACKAGE  # noqa: E402

HEAD = """# API

Written by `make docs` from the docstrings; nothing here is typed by hand. Each component can be named in a
configuration by its class path, with its options below `init_args`, or on the command line: `--model.rotary=RoPE`.
"""


def api_page() -> str:
    """Return the page: a section for each kind of component, a part for each class."""
    parts = [HEAD]
    listed = [(kind, [c for c in read_components()[kind] if c.is_public or kind == "embedding"]) for kind in KINDS]
    parts.append("\n".join(f"- [{kind}](#{kind}): {', '.join(c.name for c in cs)}" for kind, cs in listed) + "\n")
    for kind, components in listed:
        parts.append(f"## {kind}\n")
        parts += [describe(component) for component in components]
    return "\n".join(parts)


def describe(component: Component) -> str:
    """Return a component's part: class path, signature, docstring as it stands in the source."""
    classes = read_classes(PACKAGE / KINDS[component.kind][0])
    options = options_of(component.name, classes)
    shown = ", ".join(f"{name}={default}" if default else name for name, default in options.items())
    doc = classes[component.name].doc
    return f"### {component.name}\n\n`{component.class_path}({shown})`\n\n```text\n{doc}\n```\n"


def main() -> None:
    """Write the page, or check it."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--check", action="store_true", help="only say whether docs/api.md is up to date")
    path, page = ROOT / "docs" / "api.md", api_page()
    if options.parse_args().check:
        if path.read_text(encoding="utf-8") != page:
            sys.exit("docs/api.md is out of date: make docs")
    else:
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
