"""The page on running says what the commands print: those that cost nothing are run again."""

import importlib
import re
from pathlib import Path

import pytest

from iclbook import __main__ as command
from iclbook import sweep

PAGE = (Path(__file__).parents[1] / "book" / "running.md").read_text("utf8")
PROMPT = "$ python -m iclbook "


def quoted(arguments: str) -> str:
    """What the page shows as the output of a command, on one line or several."""
    blocks = re.findall(r"```console\n(.*?)\n```", PAGE, re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(f"{PROMPT}{arguments}\n")]
    return str(found.split("\n", 1)[1])


def test_the_list_is_todays(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["reproduce", "--list"])
    assert capsys.readouterr().out == f"{quoted('reproduce --list')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "reproduce A-T9",
        "reproduce A-T1 --seeds 0",
        "reproduce A-T1 --scheduler tcp://127.0.0.1:9",
    ],
)
def test_what_is_refused_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "PATIENCE", 1.0)
    with pytest.raises(SystemExit) as caught:
        command.main(arguments.split())
    start, cut, _ = quoted(arguments).partition(" (TimeoutError")  # or another, elsewhere
    said = str(caught.value.code)
    assert said.startswith(start) if cut else said == start
    assert not list(tmp_path.iterdir())


def test_results_of_other_code_are_refused_in_these_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book" / "results").mkdir(parents=True)
    monkeypatch.setattr(sweep, "PACKAGE", tmp_path / "iclbook")
    with pytest.raises(ValueError, match=r"A-T1-small\.json") as caught:
        sweep.results("A-T1-small")
    shown = re.search(r"^ValueError: …(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    assert shown
    assert str(caught.value).endswith(shown[1].replace("\n", " "))


def test_the_sweep_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("its_own.py").write_text(code.replace("__main__", "its_own"))
    with pytest.raises(sweep.SweepError) as caught:
        importlib.import_module("its_own")
    shown = re.search(r"SweepError: (.*)\n(.*)\n(.*)\n```", PAGE)
    assert shown
    assert all(line in str(caught.value) for line in shown.groups())
    assert len(list(Path("risks").glob("*.json"))) == 1 + 4


def test_options_on_the_page_are_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    named = set(re.findall(r"^\| `(--\w+)", PAGE, re.MULTILINE))
    there = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE))
    assert named == there - {"--list"}
