"""Every lesson runs from start to end. No output is kept in the repository."""

from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parents[1] / "lessons").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_runs(lesson, tmp_path):
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    notebook = jupytext.read(lesson)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert not printed


def test_lessons_hold_no_output():
    assert LESSONS
    for lesson in LESSONS:
        assert "# %%" in lesson.read_text(encoding="utf-8")
    assert not list(LESSONS[0].parent.glob("*.ipynb"))
