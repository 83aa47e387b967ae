"""How data is named: a path and what is said behind a question mark."""

from pathlib import Path

import pytest

from selftaught.data import open_data
from selftaught.data.asked import parted
from selftaught.workflow.plan import described
from selftaught.workflow.prepare import name_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("logs", "films", "what?"):
        (tmp_path / folder).mkdir()
    (tmp_path / "logs/may.csv").write_text("user,item\n" + "".join(f"u{i % 3},i{i}\n" for i in range(12)))
    (tmp_path / "films/all.csv").write_text("item,title\n" + "".join(f"i{i},film {i}\n" for i in range(12)))
    (tmp_path / "what?/a?b.csv").write_text("")
    return tmp_path


def test_values_may_be_paths_and_names_may_hold_question_marks(here: Path) -> None:
    assert parted("logs/may.csv") == (Path("logs/may.csv"), {})
    assert parted("logs/may.csv?items=films/all.csv&least=4") == (
        Path("logs/may.csv"),
        {"items": "films/all.csv", "least": "4"},
    )
    assert parted("logs/may.csv?items=../x.csv") == (Path("logs/may.csv"), {"items": "../x.csv"})
    assert parted("what?/a?b.csv") == (Path("what?/a?b.csv"), {})
    assert parted("what?/missing?source=en") == (Path("what?/missing"), {"source": "en"})
    assert parted("what?/a?b.csv?items=films/all.csv") == (Path("what?/a?b.csv"), {"items": "films/all.csv"})
    assert parted("none/of.csv?items=films/all.csv") == (Path("none/of.csv"), {"items": "films/all.csv"})


def test_the_whole_path_of_a_table_of_items(here: Path) -> None:
    data = f"logs/may.csv?items={here}/films/all.csv"
    source = open_data(data, cache=False)
    assert source.kind == "event"
    assert len(source) == 3
    assert name_of(data) == "may"
    assert described(data) == f"{here}/logs/may.csv?items={here}/films/all.csv"
    assert described("logs/may.csv?items=../x.csv") == f"{here}/logs/may.csv?items=../x.csv"
    assert described("logs") == str(here / "logs")
