"""The notebooks: committed clean, importable, and run from top to bottom in a folder that is not the checkout."""

import ast
import importlib
import json
import pathlib
import re

import nbclient
import nbformat
import pytest

import gem_jax

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def assert_imports_resolve(code: str) -> None:
    """Every import statement in `code` works: modules are imported, and what is taken from them is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None, f"cell {cell.id} stores outputs; clear them"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_code_parses_and_its_imports_resolve(path):
    cells = code_cells(read(path))
    assert cells
    for cell in cells:
        assert_imports_resolve(cell.source)


def test_the_imports_that_the_package_names_resolve():
    """The docstring of `gem_jax` shows a newcomer what to import, each with a remark after two spaces or more."""
    lines = re.findall(r"^ {4}(from .+? import \S+)", gem_jax.__doc__, re.MULTILINE)
    assert len(lines) == 4
    assert_imports_resolve("\n".join(lines))


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """Name -> (cell id -> its outputs) of a notebook run with few rows; whatever it writes goes under `tmp_path`."""
    environment = {
        "GEM_QUICKSTART_EXAMPLES": "6000",
        "GEM_YOUR_DATA_ROWS": "8000",
        "GEM_TRANSFER_EXAMPLES": "4000",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "XLA_FLAGS": "",  # one device, as a user has it
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(name: str) -> dict[str, list[nbformat.NotebookNode]]:
        notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
        working_folder = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=working_folder).execute()
        return {cell.id: cell.outputs for cell in code_cells(notebook)}

    return run


def printed(outputs: list[nbformat.NotebookNode]) -> str:
    """What a cell printed, by itself and by rich's console, which displays its text in a notebook."""
    plain = [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
    return "".join((*plain, *(o.data["text/plain"] for o in outputs if o.output_type == "display_data")))


def num_charts(outputs: list[nbformat.NotebookNode]) -> int:
    return sum("image/svg+xml" in o.get("data", {}) for o in outputs)


@pytest.mark.slow
def test_quickstart_runs_and_shows_its_numbers(run_notebook, tmp_path):
    cells = run_notebook("quickstart")
    assert "6,000 training examples" in printed(cells["imports"])
    assert re.search(r"^impressions +history +event +up to 16 events of ad, ", printed(cells["schema"]), re.MULTILINE)
    assert re.search(r"^click: label [01], true probability 0\.\d{4}$", printed(cells["example"]), re.MULTILINE)

    # What is shown is what the runs wrote.
    gem, without = (
        json.loads((tmp_path / "runs" / name / "summary.json").read_text())["eval"]
        for name in ("gem_debug", "no_sequences")
    )
    quality, comparison = printed(cells["quality"]), printed(cells["compare"])
    for task in ("click", "conversion"):
        ne, bayes_ne = gem[task]["ne"], gem[task]["bayes_ne"]
        assert f"{task}: NE {ne:.4f}, Bayes NE {bayes_ne:.4f}, closed {(1 - ne) / (1 - bayes_ne):.0%}" in quality
        assert f"{task}, GEM: NE {ne:.4f}" in comparison
        assert f"{task}, no histories: NE {without[task]['ne']:.4f}" in comparison
        assert bayes_ne == without[task]["bayes_ne"]
    assert f"calibration {gem['click']['calibration']:.3f}" in printed(cells["calibration"])
    assert [num_charts(cells[name]) for name in ("quality", "calibration", "compare")] == [2, 1, 2]

    predicted = re.findall(r"^[a-z_]+ +\d+ +(\d+\.\d\d)% +\d", printed(cells["predict"]), re.MULTILINE)
    assert len(predicted) == 8 and len(set(predicted)) > 1
    assert all(0 < float(percent) < 100 for percent in predicted)

    report = tmp_path / "runs" / "gem_debug" / "report.html"
    assert report.is_file() and str(report) in printed(cells["folder"])


@pytest.mark.slow
def test_your_data_goes_from_a_raw_log_to_scored_rows(run_notebook, tmp_path):
    cells = run_notebook("your_data")
    assert re.search(r"price +dense, log", printed(cells["prepare"]))
    assert (tmp_path / "prepared" / "features.json").is_file()
    summary = json.loads((tmp_path / "runs" / "prepared" / "summary.json").read_text())
    assert summary["best"]["metric"] == "valid/ne/click"
    assert "&lt;svg" in cells["train"][-1]["data"]["text/html"], "the curves are shown below the cell"

    scored = printed(cells["score"])
    assert "800 rows scored" in scored and len(re.findall(r"^u\d+ .* \d+\.\d%$", scored, re.MULTILINE)) == 5
    fifths = re.findall(r"predicted +(\d+\.\d)% +clicked +(\d+\.\d)%", printed(cells["check"]))
    predicted = [float(share) for share, _ in fifths]
    assert len(fifths) == 5 and predicted == sorted(predicted)
    rows = re.search(r"\((\d+), 16\)", printed(cells["embeddings"]))
    assert rows and int(rows[1]) > 50


@pytest.mark.slow
def test_transfer_shows_the_students_and_the_adapter(run_notebook, tmp_path):
    cells = run_notebook("transfer")
    table = printed(cells["table"])
    assert all(f"| dlrm | click | all | {recipe} |" in table for recipe in ("scratch", "kd", "full", "stale_full"))
    losses = re.findall(r"^(.+): log loss in the second half (\d\.\d{4})$", printed(cells["picture"]), re.MULTILINE)
    assert [name for name, _ in losses] == ["stale teacher", "through the adapter"]
    assert num_charts(cells["picture"]) == 1
    assert "DLRMConfig" in printed(cells["load"]) and "12 arrays of the run stay behind" in printed(cells["load"])
