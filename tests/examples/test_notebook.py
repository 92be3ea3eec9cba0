"""The notebook runs from its first cell to its last, and is kept without what it shows."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "enhance.ipynb"

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_valid_and_has_no_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 6
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []
    assert "widgets" not in notebook.metadata


@pytest.mark.slow  # a kernel of its own and a dozen enhancements: 12 s of a core
def test_every_cell_runs_and_shows_what_its_text_says(notebook, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    for package in ("ipykernel", "matplotlib", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    # The kernel is another process: it finds this checkout, and its own files in a folder of the test.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for cell in code for output in cell.outputs if "data" in output]
    kinds = [kind for output in shown for kind in output.data]
    assert kinds.count("image/png") == 1
    assert kinds.count("text/html") == 3  # the result, and two players
    picture = next(output.data["image/png"] for output in shown if "image/png" in output.data)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    printed = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream")
    assert "0 steps: 1 network calls" in printed
    assert "1 steps: 2 network calls" in printed
    assert "56 ms late, 64000 samples of 64000" in printed
