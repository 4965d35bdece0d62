import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_table_in_the_docs_is_what_the_code_does():
    spec = importlib.util.spec_from_file_location("attention_table", DOCS / "attention_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.written((DOCS / "attention.md").read_text()) == script.tables(), (
        "run: python docs/attention_table.py --write"
    )
