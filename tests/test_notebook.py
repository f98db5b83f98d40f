"""Outputs of a chapter: in a notebook as MyST-NB reads them, in a plain process as text."""

import subprocess
import sys

import nbformat
import pytest
from myst_nb.ext import glue as myst_glue
from nbclient import NotebookClient
from nbformat import NotebookNode

from iclbook import notebook


def run(*cells: str) -> list[list[NotebookNode]]:
    """Outputs of cells in a fresh kernel."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(nb, kernel_name="python3").execute()
    return [cell.outputs for cell in nb.cells]


def test_a_notebook_gets_all_formats_and_the_metadata() -> None:
    bundle = {"text/plain": "a line", "text/html": "<p>a line</p>"}
    call = f"from iclbook import notebook\nnotebook.show({bundle!r}, {{'iclbook': {{'n': 1}}}})"
    ((output,),) = run(call)
    assert output.output_type == "display_data"
    assert output.data == bundle
    assert output.metadata == {"iclbook": {"n": 1}}


def test_the_page_gets_from_glue_what_it_gets_from_myst_nb() -> None:
    text = "0.25 of 'it' \\n"
    ours, theirs = run(
        f"from iclbook.notebook import glue\nglue('risk', {text!r})",
        f"from myst_nb import glue\nglue('risk', {text!r}, display=False)",
    )
    assert ours == theirs
    assert len(ours) == 1
    ((key, value),) = myst_glue.extract_glue_data_cell(NotebookNode(outputs=ours))
    assert (key, value.data) == ("risk", {"text/plain": repr(text)})


def test_glue_and_show_work_where_ipython_is_not_installed() -> None:
    lines = (
        "import sys",
        "sys.modules['IPython'] = None  # importing it fails",
        "from iclbook import notebook",
        "notebook.glue('risk', '0.25')",
        "notebook.show({'text/plain': 'a line', 'text/html': '<p>'}, {'iclbook': {}})",
    )
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "a line\n", "")


def test_a_shell_without_a_kernel_is_no_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    try:
        notebook.show({"text/plain": "a line"})
        notebook.glue("risk", "0.25")
    finally:
        InteractiveShell.clear_instance()
    assert capsys.readouterr().out == "a line\n"


@pytest.mark.parametrize("bad", ["", "  ", 0.25, None])
def test_bad_names_and_texts_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="name: got"):
        notebook.glue(bad, "text")
    with pytest.raises(ValueError, match="text: got"):
        notebook.glue("name", bad)


def test_a_bundle_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="text/plain"):
        notebook.show({"text/html": "<p>"})
