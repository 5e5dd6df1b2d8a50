"""docs/python.md, run as it stands: its five uses in one Python, and a tune in a real notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_databases import probed

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "python.md"

#: What is asserted after the page's blocks have run: what they say of themselves.
AFTER = """
assert len(seen) >= 2 and seen[0] == ("sdpa · fp32", seen[0][1]) and seen[0][1] > 0, seen
assert str(found.configuration) in {row["configuration"] for row in found.rows}
assert all(isinstance(token, str) for token in next_tokens)
from transformers import AutoModelForCausalLM
plain = AutoModelForCausalLM.from_pretrained("tests/models/causal").eval()
with torch.inference_mode():
    expected = [tokenizer.decode(plain(torch.tensor([ids])).logits[0, -1].argmax()) for ids in sequences]
assert next_tokens == expected, (next_tokens, expected)
assert len(losses) == 2 and all(0 < loss < 20 for loss in losses), losses
assert nearest[0] == 0 and sorted(nearest) == [0, 1, 2]
"""


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    """All blocks in their order, in a fresh Python at the top of the repository, on the models that are shipped."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    variables = {**os.environ, "ADVISOR_DATABASE_URL": probed(f"sqlite:///{tmp_path}/advisor.db")}
    script = tmp_path / "page.py"
    script.write_text("\n\n".join([*blocks, AFTER]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tests/models/causal: ")


def test_a_tune_in_a_notebook_shows_its_trials_and_its_answer(tmp_path: Path) -> None:
    """In a real kernel: a line a trial while it runs, and the answer as a table, without being asked for either."""
    nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel are of the dev group")
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are of the dev group")
    url = probed(f"sqlite:///{tmp_path}/advisor.db")
    asked = 'lengths=16, padding=0.4, batch=4, batches=2, quality="exact", device="cpu", trials=2, blocks=0'
    cell = f'import advisor\nadvisor.tune("tests/models/causal", {asked})'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    places = {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**places, "ADVISOR_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = notebook.cells[0].outputs
    shown = " ".join(str(each.get("data", each.get("text", ""))) for each in outputs)

    (answer,) = [each["data"]["text/html"] for each in outputs if each["output_type"] == "execute_result"]
    assert "<table>" in answer
    assert "sdpa · fp32" in answer
    assert "configurations are admissible" in shown
    assert "tokens/s" in shown
    assert "Traceback" not in shown
