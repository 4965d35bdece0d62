"""The notebook of the documentation: run whole, in a kernel of its own, as a reader would."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "docs" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Cells of the notebook after a run of a few steps, in an empty folder."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(SOURCE, as_version=4)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "CUBELET_NOTEBOOK_STEPS": "8",
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
    }
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return notebook.cells, folder


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(outputs):
    cells, folder = outputs
    shown = ["".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in cells]
    assert any(text.startswith("ROMEO:") for text in shown)
    pictures = [o for cell in cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
    assert (folder / "runs/notebook/attention.json").is_file()


@pytest.mark.slow
def test_the_progress_line_renews_itself_without_control_sequences(outputs):
    cells, _ = outputs
    (fit,) = (cell for cell in cells if "trainer.fit" in cell.source)
    text = "".join(o.get("text", "") for o in fit.outputs if o.output_type == "stream" and o.name == "stdout")
    assert "step 8/8  100%" in text
    assert "\x1b" not in text
    assert "\r" in text


def test_the_notebook_is_kept_without_outputs():
    text = SOURCE.read_text(encoding="utf-8")
    assert '"outputs": []' in text
    assert '"output_type"' not in text
