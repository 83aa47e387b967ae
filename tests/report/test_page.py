import errno
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import fake_run
import numpy as np
import pytest

from selftaught.errors import RunStopped, UserError
from selftaught.reporting import make_atlas, write_report
from selftaught.reporting.atlas import Atlas
from selftaught.reporting.charts import shorten
from selftaught.reporting.pictures import embed_json

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>",
    "$style {0} %s &amp;",
    "手写数字",
]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br", "circle", "line", "path", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def tags(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page(run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_sections_come_in_order_with_the_verdict_first(run, atlas):
    atlas.save(run)
    text = page(run)
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Label efficiency",
        "Results",
        "Training",
        "Map of the embedding",
        "Nearest neighbours",
        "What was run",
        "Data",
    ]
    assert text.index("Pretraining helped: 67.1") < text.index("Linear probe accuracy") < text.index("<h2>")
    words = Elements(text).text.replace("\xa0", " ")
    for fact in (
        "With 150 labels the pretrained encoder already passes",
        "[66.2, 68.0]",
        "+24.0 points",
        "2 h 14 min",
        "rank drop, step 800",
        "lower --lr by half",
        f"selftaught pretrain data/cifar10/train --recipe {run}/recipe.json --out {run}-again",
        f"selftaught evaluate {run} data/cifar10/test",
        "The effective rank fell from 82 to 35",
        "44,990",
        "truncated JPEG",
        "train.optim.warmup",
    ):
        assert fact in words


def test_nothing_is_requested_from_anywhere(run, atlas):
    atlas.save(run)
    text = page(run)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert all(url.startswith('"data:image/') for url in re.findall(r"url\(([^)]{0,20})", text))
    elements = Elements(text)
    for _, attributes in elements.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    policy = next(m["content"] for m in elements.tags("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)
    assert not elements.tags("iframe")


@pytest.fixture
def hostile(run, atlas):
    """The same run with names that try to break out of the page, everywhere a name can stand."""
    evil = " ".join(HOSTILE)
    evaluation = fake_run.evaluation()
    evaluation["verdict"] = HOSTILE
    evaluation["rows"] += [row | {"features": name} for row in evaluation["rows"][:3] for name in HOSTILE]
    evaluation["rows"] += [row | {"measure": evil, "metric": evil} for row in evaluation["rows"][:3]]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "recipe.json").write_text(
        json.dumps({"pretext": evil, "encoder": [evil], "data": evil, "optim": {evil: evil}})
    )
    (run / "data.json").write_text(
        json.dumps({"classes": HOSTILE, "skipped": [{"name": evil, "reason": evil}], evil: 1})
    )
    (run / "alarms.jsonl").write_text(json.dumps({"step": 5, "name": evil, "cause": evil, "remedy": evil}) + "\n")
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, evil: 2.0}) + "\n")
    thumbs, labels = fake_run.synthetic(60, 16, 5)
    make_atlas(fake_run.embedding(labels), thumbs, [evil] * 60, labels, HOSTILE, 0).save(run)
    return run


def test_hostile_names_stay_text(hostile):
    elements = Elements(page(hostile))
    assert len(elements.tags("script")) == 2
    assert len(elements.tags("style")) == 1
    assert [attributes.get("id") for attributes in elements.tags("img")] == ["sheet"]
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    for name in HOSTILE:
        assert name in elements.text.replace("\xa0", " ")


def test_json_in_the_page_cannot_end_its_script():
    text = embed_json({"names": ["</script><!--", "a & b"]})
    assert "<" not in text
    assert json.loads(text) == {"names": ["</script><!--", "a & b"]}


def test_an_empty_folder_says_what_is_missing_and_how_to_make_it(tmp_path):
    text = Elements(page(tmp_path)).text
    assert "Not evaluated yet" in text
    assert f"selftaught evaluate {tmp_path} DATA" in text
    assert f"selftaught pretrain DATA --out {tmp_path}" in text
    assert "Label efficiency" not in text
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["recipe.json", "log.jsonl", "health.jsonl", "alarms.jsonl", "data.json", "summary.json", "evaluation.json"]
)
def test_any_file_may_be_absent_or_broken(run, name):
    (run / name).write_text('{"step": 3, "loss": 1.0}\n{"half')
    text = Elements(page(run)).text
    assert f"{name}" in text
    assert "cannot be read" in text
    (run / name).write_text("[1, 2]")
    page(run)
    (run / name).unlink()
    assert f"{name} cannot" not in page(run)


def test_wrong_shapes_inside_files_do_not_stop_the_report(run):
    (run / "evaluation.json").write_text(json.dumps({"rows": 3, "verdict": "yes", "protocol": [1]}))
    (run / "data.json").write_text(json.dumps({"count": "many", "classes": 10, "skipped": ["a.jpg"], "sizes": None}))
    (run / "summary.json").write_text(json.dumps({"seconds": None, "parameters": "x"}))
    (run / "recipe.json").write_text(json.dumps({"pretext": {"a": 1}, "optim": "sgd", "steps": None}))
    (run / "atlas.json").write_text("{}")
    (run / "atlas.safetensors").write_bytes(b"")
    assert "the atlas in" in Elements(page(run)).text


def test_logs_of_a_resumed_and_dying_run(run):
    rows = [
        {"step": 0, "loss": 3.0},
        {"step": 10, "loss": 99.0},
        {"step": 10, "loss": 2.0},
        {"step": 20, "loss": float("nan")},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 30, "lo')
    (run / "health.jsonl").unlink()
    text = page(run)
    assert "greatest 3" in text, "of a step logged twice the later row counts"
    assert 'class="notfinite"' in text
    assert "1 of 5 lines cannot be read" in text


def test_two_hundred_classes_and_no_labels(run):
    thumbs, labels = fake_run.synthetic(300, 16, 200)
    names = [f"{i}" for i in range(300)]
    classes = [f"class {i:03d}" for i in range(200)]
    make_atlas(fake_run.embedding(labels), thumbs, names, labels, classes, 0).save(run)
    elements = Elements(page(run))
    chips = [a for a in elements.tags("button") if a.get("class") == "chip"]
    assert len(chips) == len(set(labels.tolist()))
    assert len({a["style"] for a in chips}) == len(chips), "every class has a colour of its own"
    assert not [a for a in elements.tags("span") if a.get("class") == "name"], "no names on a crowded map"
    make_atlas(fake_run.embedding(labels), thumbs, names, None, [], 0).save(run)
    text = page(run)
    assert 'class="key"' not in text
    assert 'class="chip"' not in text


def test_frames_tell_whether_the_class_is_the_same(run, atlas):
    atlas.save(run)
    tiles = [a for a in Elements(page(run)).tags("span") if (a.get("class") or "").startswith("tile")]
    expected = []
    for query, neighbours in zip(atlas.queries, atlas.neighbours):
        expected += ["tile query"]
        expected += ["tile same" if atlas.labels[i] == atlas.labels[query] else "tile different" for i in neighbours]
    assert [a["class"] for a in tiles] == expected
    assert {"tile same", "tile different"} <= set(expected)


def test_a_page_of_1500_pictures_is_small(run, noise):
    random = np.random.default_rng(0)
    n = len(noise)
    made = Atlas(
        xy=random.uniform(-1, 1, (n, 2)).astype(np.float32),
        thumbs=noise,
        labels=random.integers(0, 10, n),
        names=[f"airplane/{i:04d}.jpg" for i in range(n)],
        classes=fake_run.CIFAR,
        queries=np.arange(12),
        neighbours=random.integers(0, n, (12, 6)),
        similarity=np.ones((12, 6), np.float32),
        trust=0.9,
        agreement=0.1,
        chance=0.1,
        seed=0,
        total=n,
    )
    made.save(run)
    assert write_report(run).stat().st_size < 2_000_000


def test_the_same_files_give_the_same_bytes_and_a_failure_keeps_the_old_page(run, atlas, monkeypatch):
    atlas.save(run)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first

    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunStopped, match="disk full"):
        write_report(run)
    assert (run / "report.html").read_bytes() == first


def test_a_page_opens_in_chromium_without_a_word_on_its_console(hostile, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed: the page is not opened in a browser")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", write_report(hostile).resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    elements = Elements(done.stdout)
    (switch,) = [a for a in elements.tags("button") if a.get("id") == "switch"]
    assert "hidden" not in switch, "the page's own script ran under its Content-Security-Policy"
    assert len(elements.tags("img")) == 1


def test_rankings_tell_how_many_and_how_rare_items_they_show(tmp_path):
    """And their first figure is the one that the verdict is told by; names stay text and wrong shapes stop nothing."""
    row = {"measure": "ranking", "labels": None, "labels_n": 0, "low": 0.1, "high": 0.3, "seeds": [0], "n": 9}
    rows = [
        {**row, "features": name, "metric": metric, "value": value}
        for metric, value in (("hr@5", 0.11), ("ndcg@10", 0.22))
        for name in ("pretrained", "ease")
    ]
    one = {"coverage@10": 0.25, "novelty@10": 7.31, "ndcg@10_by_popularity": {"head": {"value": 0.4321, "n": 5}}}
    lists = {"pretrained": one, "<b>bold</b>": {"coverage@10": "much", "ndcg@10_by_popularity": [1]}, "broken": 3}
    (tmp_path / "ranking.json").write_text(json.dumps({"rows": rows, "verdict": [], "lists": lists}))
    text = Elements(page(tmp_path)).text
    assert text.index("Ranking nDCG@10") < text.index("0.220") < text.index("Ranking, HR@5")
    assert all(part in text for part in ("items shown", "25%", "7.3", "0.432", "<b>bold</b>"))
    assert "bold" not in {name for name, _ in Elements(page(tmp_path)).found}


def test_a_baselines_name_stays_text(tmp_path):
    row = {"measure": "ranking", "labels": None, "labels_n": 0, "low": 0.1, "high": 0.3, "seeds": [0], "n": 9}
    rows = [
        {**row, "features": name, "metric": "ndcg@10", "value": value}
        for name, value in (("pretrained", 0.2), ("<blink>evil</blink>", 0.25), ("ease", 0.1))
    ]
    (tmp_path / "ranking.json").write_text(json.dumps({"rows": rows, "verdict": [], "lists": {}}))
    elements = Elements(page(tmp_path))
    assert "<blink>evil</blink>" in elements.text
    assert "blink" not in {name for name, _ in elements.found}


def test_data_that_has_no_pictures_is_asked_for_no_map(tmp_path):
    for kind, asked in (("text", False), ("event", False), ("image", True)):
        (tmp_path / "recipe.json").write_text(json.dumps({"kind": kind, "data": "somewhere"}))
        (tmp_path / "data.json").write_text(json.dumps({"kind": kind, "count": 943, "train": 943, "held_out": 943}))
        text = Elements(page(tmp_path)).text
        assert ("No map of the embedding" in text) == asked
        assert ("943 held out" in text) == (kind != "event")
        assert f"pretrain somewhere --recipe {tmp_path}/recipe.json" in text


def test_encoders_whose_names_end_unlike_have_unlike_heads():
    heads = [shorten(f"runs/pictures-{name}", 18) for name in ("simclr", "simsiam")]
    assert len(set(heads)) == 2
    assert [len(head) for head in heads] == [18, 18]
    assert shorten("short", 18) == "short"
