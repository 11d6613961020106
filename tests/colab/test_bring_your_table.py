"""The third notebook runs as it stands, at sizes for a test: from a Parquet file to scores and a verdict."""

import re
from pathlib import Path

import numpy as np
import pytest
import quick_compile
import tiny
from colab.small import SIZES
from report.page_reader import Reader

jupytext = pytest.importorskip("jupytext")

COLAB = Path(__file__).resolve().parents[2] / "colab"
SOURCE = COLAB / "bring_your_table.py"
pytestmark = pytest.mark.xdist_group("notebooks")
SMALL = {**SIZES, "evaluate.baselines": False}
CHANGED = {"ROWS": "300", "MEASURE_S": "0.02"}


def cells(path):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]


def test_the_install_cell_is_that_of_the_first_notebook():
    ours, first = (
        [cell.source for cell in cells(path) if "def install_on_colab" in cell.source]
        for path in (SOURCE, COLAB / "scaletot_in_ten_minutes.py")
    )
    assert ours == first and len(ours) == 1


@pytest.fixture(scope="module")
def ran(tmp_path_factory, programs):
    """The names that the cells leave behind, what they print, and what their last lines show."""
    folder = tmp_path_factory.mktemp("notebook")
    names: dict = {"__name__": "notebook"}
    shown, said = [], []
    with pytest.MonkeyPatch.context() as patch, quick_compile.here(programs):
        patch.chdir(folder)
        patch.setenv("SCALETOT_LM", str(tiny.write_tiny_lm(folder / "tiny_lm")))
        names["print"] = lambda *words: said.append(" ".join(map(str, words)))
        for number, cell in enumerate(cells(SOURCE)):
            text = cell.source
            if "parameters" in cell.metadata.get("tags", []):
                text = re.sub(r"SIZES = \{.*?\n\}", f"SIZES = {SMALL!r}", text, flags=re.DOTALL)
                for left, right in CHANGED.items():
                    text, count = re.subn(rf"^{left} = [^#\n]*", f"{left} = {right}  ", text, flags=re.MULTILINE)
                    assert count == 1
                assert repr(SMALL) in text
            exec(compile(text, f"{SOURCE.name}, code cell {number}", "exec"), names)
            last = text.strip().splitlines()[-1]
            if re.fullmatch(r"[\w.\[\]]+", last):
                shown.append((last, eval(last, names)._repr_html_()))
    return folder, names, said, dict(shown)


@pytest.mark.pipeline
def test_the_cells_ran(ran):
    folder, names, said, shown = ran
    printed = "\n".join(said)
    assert list(shown) == ["population", "read", "found", "found[0].tree", "judged"]
    assert "300 rows, as the schema says" in printed and "150 users scored" in printed
    assert "lt30" in printed and "31" in printed  # the bad table is refused by name and value
    assert "population: 300 rows" in printed and "tokens/s through the model" in printed
    assert "target v5e-1: 1 chips as v5e:1x1" in printed
    assert (folder / "my-run" / "report" / "report.html").exists()
    assert names["judged"].word in ("helped", "hurt", "cannot be told at this size")
    expected = names["scores"]["expected_lt30"].to_numpy()
    assert expected.shape == (150,) and np.isfinite(expected).all() and (expected >= 0).all()


@pytest.mark.pipeline
def test_nothing_that_is_shown_names_a_user(ran):
    _, names, said, shown = ran
    for text in [*said, *shown.values(), *(repr(names[name]) for name in ("population", "read", "found", "judged"))]:
        assert not re.search(r"u0000\d{3}|new-user-|555-\d", text)
    for piece in shown.values():
        assert not Reader(piece).scripts
