"""Tables of items in every form, joined to a log by raw ids; what is wrong with them in one line."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selftaught.data import open_data
from selftaught.data.events import EventSource
from selftaught.data.item_table import ItemFacts, read_items
from selftaught.errors import UserError

ITEMS = ["7", "8", "9"]
SAID = ["Toy, Story", "", "Heat"]


def pairs(facts: ItemFacts) -> list[tuple[str, str]]:
    return [(ITEMS[i], facts.attributes[a]) for i, a in zip(facts.item.tolist(), facts.attribute.tolist(), strict=True)]


def tables(folder: Path) -> list[str]:
    (folder / "a.csv").write_text('item_id,title,genres\n7,"Toy, Story",fun|kids\n9,Heat,crime\n10,Other,fun\n')
    (folder / "a.tsv").write_text("itemId\ttitle\tgenres\n7\tToy, Story\tfun;kids\n9\tHeat\tcrime\n")
    (folder / "a.item").write_text(
        "item_id:token\tmovie_title:token_seq\tgenres:token_seq\n7\tToy, Story\tfun kids\n9\tHeat\tcrime\n"
    )
    rows = [
        {"item": 7, "title": "Toy, Story", "genres": ["fun", "kids"]},
        {"item": 9, "title": "Heat", "genres": ["crime"]},
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return ["a.csv", "a.tsv", "a.item", "a.jsonl", "a.parquet"]


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    for name in tables(tmp_path):
        facts, without = read_items(tmp_path / name, ITEMS)
        assert facts.words == SAID, name
        assert pairs(facts) == [("7", "genres: fun"), ("7", "genres: kids"), ("9", "genres: crime")], name
        assert without == 1


def test_json_objects_hold_attributes_or_words(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"7": [3, 4, 3], "9": [4], "x": [5]}')
    facts, without = read_items(path, ITEMS)
    assert (pairs(facts), facts.words, without) == ([("7", "3"), ("7", "4"), ("9", "4")], ["", "", ""], 1)
    path.write_text('{"7": "Toy, Story", "9": "Heat"}')
    assert read_items(path, ITEMS)[0].words == SAID
    for content, message in (
        ("[1]", "must hold one object"),
        ("{", "cannot be read"),
        ('{"x": []}', "no item of the log"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_items(path, ITEMS)


def test_columns_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sku,label,kind,by\n7,Toy,fun,ann\n9,Heat,crime,bob\n")
    facts, _ = read_items(path, ITEMS, words="label", attributes="kind,by")
    assert facts.words == ["Toy", "", "Heat"]
    assert facts.attributes == ["by: ann", "by: bob", "kind: crime", "kind: fun"]
    assert read_items(path, ITEMS, words="label,by")[0].words == ["Toy ann", "", "Heat bob"]
    for given, message in (
        ({"words": "lable"}, "unknown column of .* for words 'lable'; did you mean 'label'"),
        ({}, "neither words nor attributes by a usual name"),
    ):
        with pytest.raises(UserError, match=message):
            read_items(path, ITEMS, **given)
    path.write_text("what,title\n7,Toy\n")
    with pytest.raises(UserError, match="no column of items by a usual name"):
        read_items(path, ITEMS)
    with pytest.raises(UserError, match="is no table of items"):
        read_items(tmp_path / "none.csv", ITEMS)


def test_a_log_carries_what_is_known_of_its_items(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\na,7,1\na,9,2\nb,8,1\nb,7,2\n")
    tables(tmp_path)
    said: list[str] = []
    plain = open_data(log, cache=False)
    source = open_data(f"{log}?items=a.csv", cache=False, say=said.append)
    assert isinstance(source, EventSource)
    assert source.about is not None
    assert source.about.words == SAID
    assert said == [f"1 of 3 items are not in {tmp_path / 'a.csv'}"]
    assert source.fingerprint != plain.fingerprint
    assert source.log_hash == plain.fingerprint
    assert source.subset(np.array([0])).about is source.about


def test_columns_of_the_log_itself_may_say_it(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "user,what,time,name,sort\na,7,1,Toy,fun\na,9,2,,crime\nb,8,1,Bear,\nb,7,2,Toy,fun;new\nb,9,3,Heat,crime\n"
    )
    source = open_data(f"{log}?item=what&words=name&attributes=sort", cache=False)
    assert isinstance(source, EventSource)
    assert source.about is not None
    assert source.about.words == ["Toy", "Bear", "Heat"]
    assert pairs(source.about) == [("7", "sort: fun"), ("7", "sort: new"), ("9", "sort: crime")]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8-sig"])
def test_a_table_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("item_id,title,genres\n7,我们的故事,动作|喜剧\n9,大话西游,爱情\n".encode(encoding))
    facts, _ = read_items(path, ITEMS)
    assert facts.words == ["我们的故事", "", "大话西游"]
    assert pairs(facts) == [("7", "genres: 动作"), ("7", "genres: 喜剧"), ("9", "genres: 爱情")]


def test_a_table_that_is_partly_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("item_id,title\n7,一二三四五六七八九十好的\n9,".encode() + b"\xff\n")
    with pytest.raises(UserError, match=r"a.csv is not UTF-8 text; save it as UTF-8$"):
        read_items(path, ITEMS)


@pytest.mark.parametrize("value", [{"title": "Toy", "genre": "fun"}, None, 3, ["a", ["b"]], [None]])
def test_values_of_a_json_object_are_words_or_lists(value: object, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"7": "Toy", "9": value}))
    with pytest.raises(
        UserError, match=r"^'9' in .*a.json is .*, neither words nor a list of attributes; write a .jsonl"
    ):
        read_items(path, ITEMS)


def test_lines_of_a_table_that_are_no_objects_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"item_id": "7", "title": "Toy"}\n["9", "Game"]\n')
    with pytest.raises(UserError, match=r"a.jsonl must hold one JSON object a line"):
        read_items(path, ITEMS)
