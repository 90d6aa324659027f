"""Every notebook runs from top to bottom without an error, and is kept small, clean and free of outputs."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CELL_LIMIT = 15
SECONDS = 120


@pytest.fixture(autouse=True)
def quiet_kernel(monkeypatch):
    """One thread, and no browser for figures."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def run(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Outputs of all cells; an error in any of them raises."""
    place = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def said(outputs: list[nbformat.NotebookNode]) -> str:
    return "\n".join(output["data"].get("text/markdown", "") for output in outputs if "data" in output)


def test_all_lessons_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_small_and_without_outputs(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert len(cells) <= CELL_LIMIT
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_code_cells_pass_the_linter():
    command = [sys.executable, "-m", "ruff", "check", "--config", "extend-exclude = []", str(FOLDER)]
    result = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_without_an_error(path):
    outputs = run(read(path))
    figures = [output for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert figures and said(outputs)
    assert not [output.text for output in outputs if output.output_type == "stream"]


def stored_study() -> dict:
    ratios = {"router": {2.5: 1.2, 3.0: 1.1, 4.5: 1.01}, "layer": {2.5: 1.3, 4.5: 1.02}, "fixed depth": {2.0: 1.5}}
    rows = [
        {"policy": policy, "bits": bits, "measured_bits": bits, "ratio": ratio, "tokens": 9000}
        for policy, curve in ratios.items()
        for bits, ratio in curve.items()
    ]
    bars = {"calibrated 3, run 3": 1.1, "calibrated 3, run 4": 1.05, "calibrated 3, outliers at 3": 1.04}
    return {
        "device": "a test",
        "elastic": {"final": {"wikitext2": rows}},
        "bit_specific_ratio": {"2": 1.4, "3": 1.2, "4": 1.03},
        "bars": bars | {"calibrated 4, run 4": 1.02},
    }


@pytest.mark.parametrize("stored", [False, True], ids=["absent", "stored"])
def test_the_study_is_read_where_stored_and_missed_honestly_where_not(stored, tmp_path):
    results = tmp_path / "results.json"
    if stored:
        results.write_text(json.dumps(stored_study()))
    notebook = read(NOTEBOOKS[3])
    start = f"from pathlib import Path\n\nimport lesson\n\nlesson.RESULTS = Path({str(results)!r})"
    notebook.cells = [nbformat.v4.new_code_cell(start), *_without_measurements(notebook)]
    words = said(run(notebook))
    assert ("no stored study" in words) is not stored
    assert ("does not guess" in words) is not stored
    assert ("not stored" in words) is not stored
    if stored:
        assert "first effect: **seen**" in words and "second effect: **seen**" in words
        assert "elastic better, -8.3%" in words and "bit-specific better, +7.1%" in words


def _without_measurements(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells on a small text cut short: only the stored study is under test."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace("[: 3 * 255]", "[:40]")
    return notebook.cells
