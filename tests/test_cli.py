"""The command line: the same names as in Python, help that fits a screen, and one clear line for every bad request."""

import functools
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import selftaught
from selftaught import api, cli
from selftaught.errors import UserError
from tests import runs
from tests.data.pictures import bomb

Refused = Callable[..., str]
BUDGET = ("--steps", 2, "--batch", 16)


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Call with words of the command line: what it says in its one line, exit code 2, nothing on standard output."""

    def call(*words: object) -> str:
        result = runs.run(*words, cwd=tmp_path)
        assert result.out == ""
        return runs.one_line(result, 2)

    return call


@pytest.fixture(scope="session")
def run() -> Path:
    """A small finished run."""
    out = runs.folder("cli-run")
    words = ("--steps", 4, "--batch", 16, "--holdout", 0.25, "--out", out)
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, *words)
    return out


def _contents(folder: Path) -> dict[str, bytes]:
    return runs.files(folder, "**/*")


# What the verbs are


def test_verbs_are_the_public_functions() -> None:
    assert set(cli.VERBS) == set(selftaught.__all__) - {"load"}
    for name in selftaught.__all__:
        assert getattr(selftaught, name) is getattr(api, name)
        assert inspect.getdoc(getattr(api, name))


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_names_every_argument_and_fits_a_screen(verb: str) -> None:
    code, text, said = runs.run(verb, "--help")
    assert (code, said) == (0, "")
    assert sum(max(1, -(-len(line) // 80)) for line in text.splitlines()) <= 40
    flags = {f.removeprefix("no-") for f in re.findall(r"^│ --([a-z-]+)", text, re.MULTILINE)}
    positional = set(re.findall(r"^│ (?:\[?)([A-Z]+)\b", text, re.MULTILINE))
    parameters = inspect.signature(getattr(api, verb)).parameters
    assert {*flags, *(p.lower() for p in positional)} == {name.replace("_", "-") for name in parameters}
    for name, parameter in parameters.items():
        if isinstance(parameter.default, int | float | str) and not isinstance(parameter.default, bool):
            assert f"(default: {parameter.default})" in " ".join(text.replace("│", " ").split()), name


def test_nothing_heavy_is_imported_for_help_or_for_the_package() -> None:
    program = """
import sys
import selftaught
assert dir(selftaught)
from selftaught import cli
for words in (["--help"], ["pretrain", "--help"], ["--version"], ["nonsense"]):
    try:
        cli.main(words)
    except SystemExit:
        pass
heavy = {"torch", "torchvision", "timm", "sklearn", "numpy", "pyarrow", "safetensors", "PIL"} & set(sys.modules)
print(f"HEAVY {sorted(heavy)}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_installed_command_runs_in_a_process_of_its_own(run: Path, tmp_path: Path) -> None:
    """What the other tests run in forks is what the installed command does, to the bit; results go to standard output."""
    command = Path(sys.executable).with_name("selftaught")
    words = [command, "pretrain", runs.pictures(), *runs.ENCODER, "--steps", 4, "--batch", 16, "--holdout", 0.25]
    environment = {**os.environ, **runs.environment()}
    done = subprocess.run(
        [*map(str, words), "--out", "own"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert (done.returncode, done.stdout) == (0, "own\n"), done.stderr
    same = ("encoder/*", "log.jsonl", "health.jsonl", "recipe.json")
    assert runs.files(tmp_path / "own", *same) == runs.files(run, *same)
    done = subprocess.run([command, "evaluate", "nowhere", "x"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "selftaught: 'nowhere' is no run folder and no encoder bundle\n"


# Data that cannot be used


def _text_only(folder: Path) -> None:
    (folder / "notes.txt").write_text("no picture")


def _no_data(folder: Path) -> None:
    (folder / "notes.doc").write_text("no picture")


def _false_jpeg(folder: Path) -> None:
    (folder / "a.jpg").write_text("I am text")


def _zero_bytes(folder: Path) -> None:
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(b"")


def _truncated(folder: Path) -> None:
    for i in range(3):
        file = folder / f"{i}.jpg"
        runs.picture(i, i, side=64).save(file)
        file.write_bytes(file.read_bytes()[:-200])


def _tiny(folder: Path) -> None:
    for i in range(30):
        Image.new("RGB", (1, 1), (i, 0, 0)).save(folder / f"{i}.png")


@functools.cache
def _packed() -> bytes:
    return bomb(16384)


def _bomb(folder: Path) -> None:
    (folder / "bomb.png").write_bytes(_packed())


def _one(folder: Path) -> None:
    runs.picture(0, 0).save(folder / "a.png")


def _same(folder: Path) -> None:
    for i in range(20):
        runs.picture(0, 0).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda folder: None, r"no picture in .* \(it is empty\); pictures end in \.jpg"),
        (_text_only, r"holds one document only; many are needed"),
        (_no_data, r"no picture in .* \(it holds 1 \.doc\)"),
        (_false_jpeg, r"1 of 1 pictures in .* cannot be used, .*a\.jpg: not a picture \(starts with b'I am tex'\)"),
        (_zero_bytes, r"3 of 3 pictures in .* cannot be used, .*0\.jpg: empty file"),
        (_truncated, r"3 of 3 pictures in .* cannot be used, .*0\.jpg: truncated JPEG"),
        (_tiny, r"30 of 30 pictures in .* cannot be used, .*1 x 1 pixels; at least 4 a side are needed"),
        (_bomb, r"1 of 1 pictures in .* cannot be used, .*bomb\.png: decodes to .* limit is 64"),
        (_one, r"holds one image only; pass a folder or list of many pictures"),
        (_same, r"a hold-out share of 0\.1 takes \w+ of these 20 samples"),
    ],
    ids=[
        "empty",
        "text",
        "no data",
        "text as .jpg",
        "zero bytes",
        "truncated",
        "1 x 1",
        "bomb",
        "one picture",
        "all the same",
    ],
)
@pytest.mark.parametrize("verb", ["pretrain", "inspect"])
def test_unusable_folder(refused: Refused, tmp_path: Path, verb: str, fill: Callable[[Path], None], said: str) -> None:
    if verb == "inspect" and fill is _same:
        pytest.skip("inspect holds nothing out")
    data = tmp_path / "data"
    data.mkdir()
    fill(data)
    more = (*BUDGET, "--out", tmp_path / "run") if verb == "pretrain" else ()
    assert re.search(said, refused(verb, data, *more, "--quiet"))
    assert not (tmp_path / "run").exists(), "a run that cannot start leaves no folder"


def test_bomb_among_good_pictures_is_skipped_and_listed(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", 60)
    packed = _packed()
    assert len(packed) < 1_000_000 < 700_000_000 < 3 * 16384**2
    (data / "arc" / "bomb.png").write_bytes(packed)
    runs.succeed("pretrain", data, *runs.ENCODER, *BUDGET, "--out", tmp_path / "run")
    skipped = json.loads((tmp_path / "run" / "data.json").read_text())["skipped"]
    assert [row["name"] for row in skipped] == ["arc/bomb.png"]
    assert re.match(
        r"decodes to 8\d\d MB \(16384 x 16384\); limit is 64 megapixels|decodes to 268 megapixels", skipped[0]["reason"]
    )


def test_folder_without_permission(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", 8)
    words = [sys.executable, "-m", "selftaught.cli", "pretrain", data, "--steps", "2", "--out", tmp_path / "run"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and there is no setpriv to give that up")
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--", *words]
    data.chmod(0)
    try:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    finally:
        data.chmod(0o755)
    message = runs.one_line(runs.Result(done.returncode, done.stdout, done.stderr), 2)
    assert message == f"cannot read folder {data}: no permission to read; check its path and permissions"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "nowhere does not exist"),
        ("a.png", "is one image only"),
        ("a.xyz", "is of no known kind"),
        ("a.npy", "cannot be read"),
        ("a.parquet", "a.parquet"),
        ("a.csv", "a.csv"),
        ("a.tar", "a.tar"),
    ],
)
def test_unusable_file(refused: Refused, tmp_path: Path, name: str, said: str) -> None:
    if name == "a.png":
        runs.picture(0, 0).save(tmp_path / name)
    elif name != "nowhere":
        (tmp_path / name).write_bytes(b"\x93NUMPY these bytes are nothing of that kind")
    assert said in refused("pretrain", tmp_path / name, *BUDGET, "--out", tmp_path / "run", "--quiet")


# Values that cannot be met

_PRETRAIN = [
    (["--batch", 0], "--batch 0 is not above 0"),
    (["--batch", -3], "--batch -3 is not above 0"),
    (["--batch", 100000], "batch 100000 is larger than the"),
    (["--steps", 0], "--steps 0 is not above 0"),
    (["--steps", -4], "--steps -4 is not above 0"),
    (["--epochs", 0], "--epochs 0 is not above 0"),
    (["--epochs", "inf"], "--epochs inf is not above 0"),
    (["--minutes", -1], "--minutes -1 is not above 0"),
    (["--minutes", 0], "--minutes 0 is not above 0"),
    (["--minutes", "nan"], "--minutes nan is not above 0"),
    (["--lr", -1], "--lr -1 is not above 0"),
    (["--lr", 0], "--lr 0 is not above 0"),
    (["--lr", "nan"], "--lr nan is not above 0"),
    (["--lr", "inf"], "--lr inf is not above 0"),
    (["--size", 0], "--size 0 is below 8; use --size 8 or more"),
    (["--size", 2], "--size 2 is below 8; use --size 8 or more"),
    (["--size", -5], "--size -5 is below 8; use --size 8 or more"),
    (["--holdout", 1.5], "--holdout 1.5 is not between 0 and 1; use for example 0.1"),
    (["--holdout", 0], "--holdout 0 is not between 0 and 1"),
    (["--holdout", -1], "--holdout -1 is not between 0 and 1"),
    (["--holdout", "nan"], "--holdout nan is not between 0 and 1"),
    (["--steps", 3, "--epochs", 2], "--steps and --epochs are both given; a run has one budget, give one"),
    (["--epochs", 3, "--minutes", 2], "--epochs and --minutes are both given"),
    (["--pretext", "simclrr"], "unknown pretext 'simclrr'; did you mean 'simclr'? Known: "),
    (["--pretext", "rotaton"], "unknown pretext 'rotaton'; did you mean 'rotation'? Known: "),
    (["--pretext", "nowhere.py"], "pretext file 'nowhere.py' does not exist"),
    (["--encoder", "resnet10_x025"], "unknown encoder 'resnet10_x025'; did you mean 'resnet10_x0.25'? Known: "),
    (["--encoder", "resnt50"], "did you mean 'resnet50'? Known: "),
    (["--pretext", "mae", "--encoder", "resnet10"], "use a vit_* encoder, such as vit_micro"),
    (["--device", "tpu"], "device 'tpu' is unknown; use auto, cpu or cuda"),
    (["--weights", "nowhere.safetensors"], "weights 'nowhere.safetensors' is not a file"),
    (["--set", "pretext.temperatur=1"], "unknown setting 'pretext.temperatur'; did you mean 'pretext.temperature'?"),
    (["--lr", 0.1, "--set", "optim.lr=0.2"], "--lr and setting 'optim.lr' both say the learning rate; give one"),
    (["--set", "optim.lrr=1"], "unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
    (["--set", "train.emma=1"], "unknown setting 'train.emma'; did you mean 'train.ema'?"),
    (["--set", "optimm.lr=1"], "unknown section of settings 'optimm'; did you mean 'optim'?"),
    (["--set", "optim.name=adamm"], "setting 'optim.name' is \"adamm\"; it must be one of adamw, sgd, lars"),
    (["--set", "pretext.norm=foo"], "setting 'pretext.norm' is \"foo\"; it must be one of batch, layer, none"),
    (["--set", "pretext.temperature=hot"], "setting 'pretext.temperature' is \"hot\"; it must be float"),
    (["--set", "pretext.temperature=0"], "setting 'pretext.temperature' is 0.0; it must be above 0"),
    (["--set", "pretext.out=0"], "setting 'pretext.out' is 0; it must be above 0"),
    (["--set", "pretext.view.blurr=1"], "unknown field of the view 'blurr'; did you mean 'blur'?"),
    (["--set", "pretext.view.flip=no"], "setting 'pretext.view.flip' is \"no\"; it must be float"),
    (["--set", "pretext.view.crop_scale=0.5"], "setting 'pretext.view.crop_scale' is 0.5; it must be tuple"),
    (["--set", "pretext.view.crop_scale=[0.4]"], "setting 'pretext.view.crop_scale' is [0.4]; it must be tuple"),
    (["--set", "pretext.view.exact_colour=no"], "setting 'pretext.view.exact_colour' is \"no\"; it must be bool"),
    (
        ["--set", "pretext.view.size=3", "--encoder", "vit_micro"],
        "does not read pictures of that side; use a larger one",
    ),
    (
        ["--pretext", "swav", "--set", "pretext.local_scale=[0.5,0.1]"],
        "setting 'pretext.local_scale' is (0.5, 0.1); it must",
    ),
    (["--pretext", "/tmp/.pyx/mine.py"], "pretext file '/tmp/.pyx/mine.py' does not exist"),
    (["--set", "pretext.view.blur=5"], "view.blur is 5.0, but must be a probability in [0, 1]"),
    (["--set", "train.save_every=0"], "setting 'train.save_every' is 0; it must be at least 1"),
    (["--set", "train.health_every=0"], "setting 'train.health_every' is 0; it must be at least 1"),
    (["--set", "train.keep=0"], "setting 'train.keep' is 0; it must be at least 1"),
    (["--set", "train.threads=0"], "setting 'train.threads' is 0; it must be at least 1"),
    (["--set", "train.workers=-1"], "setting 'train.workers' is -1; it must be 0 (no loader thread) or more"),
    (["--set", "train.ema=2"], "setting 'train.ema' is 2.0; it must be in [0, 1), such as 0.99"),
    (["--set", "train.accumulate=0"], "setting 'train.accumulate' is 0; it must be at least 1"),
    (["--set", "train.accumulate=3"], "use a --batch that is a multiple of 3"),
    (["--set", "train.precision=fp64"], "setting 'train.precision' is \"fp64\"; it must be one of fp32, bf16"),
    (["--set", "train.strategy=foo"], "setting 'train.strategy' is \"foo\"; it must be one of ddp, fsdp"),
    (["--set", "train.steps=5"], "setting 'train.steps' is given by --steps; leave it out of --set"),
    (["--set", "train.batch=5"], "setting 'train.batch' is given by --batch"),
    (["--set", "train.world=2"], "setting 'train.world' is given by torchrun"),
    (["--set", "encoder.channels=9"], "setting 'encoder.channels' is given by the data"),
    (["--set", "train=3"], "setting 'train' is a section; set one of its fields, such as train.NAME=VALUE"),
    (["--set", "nonsense"], "setting 'nonsense' is not NAME=VALUE, such as pretext.temperature=0.2"),
    (["--set", "optim.lr=1", "--set", "optim.lr.x=2"], "setting 'optim.lr.x=2' goes below a value set before"),
    (["--pretext", "rotation", "--set", "pretext.copies=3"], "setting 'pretext.copies' is 3; it must be one of 1, 4"),
    (["--recipe", "nowhere.json"], "'nowhere.json' does not exist"),
    (["--recipe", "recipe.json", "--seed", 1], "--recipe says all about a run; leave out --seed"),
    (["--recipe", "recipe.json", "--set", "optim.lr=1"], "--recipe says all about a run; leave out --set"),
]


def _line(words: list[object], out: Path) -> list[object]:
    """A whole command line around the words that matter."""
    more: list[object] = ["--out", out, "--quiet"]
    if "--recipe" not in words:
        more += [] if {"--steps", "--epochs", "--minutes"} & set(words) else ["--steps", 2]
        more += [] if "--encoder" in words else runs.ENCODER
        more += [] if "--batch" in words else ["--batch", 16]
    return ["pretrain", runs.pictures(), *words, *more]


@pytest.fixture(scope="session")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, runs.Result]]:
    place = tmp_path_factory.mktemp("refusals")
    outs = [place / f"run-{i}" for i in range(len(_PRETRAIN))]
    found = runs.run_many([_line(words, out) for (words, _), out in zip(_PRETRAIN, outs, strict=True)], place)
    return list(zip(outs, found, strict=True))


@pytest.mark.parametrize("case", range(len(_PRETRAIN)), ids=lambda i: " ".join(map(str, _PRETRAIN[i][0])))
def test_pretrain_refuses(refusals: list[tuple[Path, runs.Result]], case: int) -> None:
    out, result = refusals[case]
    assert result.out == ""
    assert _PRETRAIN[case][1] in runs.one_line(result, 2)
    assert not out.exists(), "a run that cannot start leaves no folder"


_OTHERS = [
    (["evaluate", "RUN", "DATA", "--labels", 0], "--labels 0 is not above 0"),
    (["evaluate", "RUN", "DATA", "--labels", -2], "--labels -2 is not above 0"),
    (["evaluate", "RUN", "DATA", "--labels", 1.4], "--labels 1.4 is neither a share up to 1 nor a whole number"),
    (["evaluate", "RUN", "DATA", "--labels", "nan"], "--labels nan is not above 0"),
    (["evaluate", "RUN", "DATA", "--draws", 0], "--draws 0 is not above 0"),
    (["evaluate", "RUN", "DATA", "--device", "x"], "device 'x' is unknown"),
    (["evaluate", "RUN", "DATA", "--against", "nowhere"], "'nowhere' is no run folder and no encoder bundle"),
    (["evaluate", "RUN", "nowhere"], "nowhere does not exist"),
    (["evaluate", "DATA", "DATA"], "is no run folder and no encoder bundle"),
    (["finetune", "RUN", "DATA", "--labels", 0], "--labels 0 is not above 0"),
    (["finetune", "RUN", "DATA", "--labels", -2], "--labels -2 is not above 0"),
    (["finetune", "RUN", "DATA", "--labels", 1.4], "--labels 1.4 is neither a share up to 1 nor a whole number"),
    (["finetune", "RUN", "DATA", "--epochs", 0], "--epochs 0 is not above 0"),
    (["finetune", "RUN", "DATA", "--batch", 0], "--batch 0 is not above 0"),
    (["finetune", "RUN", "DATA", "--batch", 5000], "batch 5000 is larger than the"),
    (["finetune", "RUN", "DATA", "--lr", 0], "--lr 0 is not above 0"),
    (["finetune", "RUN", "DATA", "--mode", "hed"], "mode 'hed' is unknown; use full, head, lastK or loraR"),
    (["finetune", "RUN", "DATA", "--mode", "lora8"], "adapts attention, and encoder 'resnet10_x0.25' has none"),
    (["finetune", "RUN", "DATA", "--mode", "last0"], "mode 'last0' is unknown"),
    (["finetune", "RUN", "DATA", "--set", "pretext.x=1"], "unknown section of settings 'pretext'"),
    (["finetune", "RUN", "DATA", "--set", "optim.lrr=1"], "did you mean 'optim.lr'?"),
    (["finetune", "RUN", "DATA", "--set", "train.ema=0.9"], "'train.ema' is 0.9, and finetune keeps no averaged"),
    (
        ["finetune", "RUN", "DATA", "--set", "train.batch=abc"],
        "setting 'train.batch' is given by --batch; leave it out",
    ),
    (
        ["finetune", "RUN", "DATA", "--set", "train.strategy=fsdp"],
        "'train.strategy' is of several processes, and finetune",
    ),
    (["finetune", "RUN", "DATA", "--set", "task.smoothing=2"], "setting 'task.smoothing' is 2.0; it must be in [0, 1)"),
    (["finetune", "RUN", "DATA", "--set", "optim.name=[1]"], "setting 'optim.name' is [1]; it must be one of adamw"),
    (["finetune", "RUN", "DATA", "--set", "optim.warmup=Infinity"], "optimiser warmup inf must be a share below 1 or"),
    (["finetune", "RUN", "DATA", "--lr", 0.1, "--set", "optim.lr=0.2"], "--lr and setting 'optim.lr' both say the"),
    (["predict", "RUN", "DATA"], "holds no classifier; make one with: selftaught finetune"),
    (["predict", "nowhere", "DATA"], "'nowhere' is no run folder and no encoder bundle"),
    (["embed", "RUN", "DATA", "--out", "x.txt"], "'x.txt' must end in .npy or .parquet"),
    (["embed", "RUN", "DATA", "--out", "/proc/none/x.npy"], "/proc/none"),
    (["report", "nowhere"], "nowhere is not a run folder"),
    (["inspect", "nowhere"], "nowhere does not exist"),
    (["inspect", "DATA", "--other", "nowhere"], "nowhere does not exist"),
    (["preview", "nowhere"], "nowhere does not exist"),
    (["preview", "DATA", "--count", 0], "--count 0 is not above 0"),
    (["demo", "mnist"], "unknown demo data set 'mnist'; did you mean 'mnist5k'?"),
]


@pytest.fixture(scope="session")
def other_refusals(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[runs.Result]:
    before, places = _contents(run), {"RUN": run, "DATA": runs.pictures()}
    lines = []
    for words, _ in _OTHERS:
        quiet = [] if words[0] in ("report", "demo") else ["--quiet"]
        lines.append([*(places.get(str(w), w) for w in words), *quiet])
    found = runs.run_many(lines, tmp_path_factory.mktemp("others"))
    assert _contents(run) == before
    return found


@pytest.mark.parametrize("case", range(len(_OTHERS)), ids=lambda i: " ".join(map(str, _OTHERS[i][0])))
def test_other_verbs_refuse(other_refusals: list[runs.Result], case: int) -> None:
    assert other_refusals[case].out == ""
    assert _OTHERS[case][1] in runs.one_line(other_refusals[case], 2)


def test_words_that_are_no_options_end_with_code_2(tmp_path: Path) -> None:
    lines = [["--stepss", 3], ["--steps", "x"], ["--device"]]
    results = runs.run_many(
        [["pretrain", "x", *words] for words in lines] + [["pretrain"], ["pretrian", "x"]], tmp_path
    )
    for result in results:
        assert (result.code, result.out) == (2, "")
        assert "Traceback" not in result.err
    assert "--steps N" in results[0].err  # the nearest match


def test_a_set_without_labels(refused: Refused, run: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(40):
        runs.picture(1000 + i, i % 4).save(flat / f"{i}.png")
    for verb in ("evaluate", "finetune"):
        assert re.search(
            r"has no labels; put the pictures into one folder per class", refused(verb, run, flat, "--quiet")
        )


# Runs that are in the way


def test_another_recipe_in_the_same_folder_shows_the_difference(refused: Refused, run: Path) -> None:
    before = _contents(run)
    words = ("--steps", 4, "--batch", 16, "--holdout", 0.25, "--out", run, "--quiet", "--set", "optim.lr=1")
    message = refused("pretrain", runs.pictures(), *runs.ENCODER, *words, "--seed", 3)
    assert message == f"'{run}' holds another run (seed: 0 -> 3; settings: [] -> [\"optim.lr=1\"]); use another --out"
    assert _contents(run) == before


def test_refused_request_does_not_hold_its_folder(refused: Refused, tmp_path: Path) -> None:
    words = ("pretrain", runs.pictures(), *runs.ENCODER, "--steps", 2, "--out", tmp_path / "run", "--quiet")
    refused(*words, "--batch", 100000)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "request.json").write_text('{"steps": 1}')  # taken, but stopped before its first measure
    runs.succeed(*words, "--batch", 16)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_out_that_is_no_run_is_left_alone(refused: Refused, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "thesis"
    if kind == "folder":
        out.mkdir()
        (out / "chapter.txt").write_text("years of work")
    else:
        out.write_text("years of work")
    message = refused("pretrain", runs.pictures(), *runs.ENCODER, *BUDGET, "--out", out, "--quiet")
    assert message.startswith(f"'{out}'")
    assert message.endswith("use another --out")
    assert list(tmp_path.rglob("*.txt" if kind == "folder" else "thesis")) == [
        out / "chapter.txt" if kind == "folder" else out
    ]


@pytest.mark.parametrize("name", ["f.npy", "f.parquet", "f.names.txt"])
def test_embed_overwrites_nothing(refused: Refused, run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("dear")
    out = tmp_path / name.replace(".names.txt", ".npy")
    message = refused("embed", run, runs.pictures(), "--out", out, "--quiet")
    assert message == f"'{tmp_path / name}' exists; name another file with --out, or remove it"
    assert (tmp_path / name).read_text() == "dear"


def test_data_that_changed_since_the_start(refused: Refused, tmp_path: Path) -> None:
    data, out = runs.write_pictures(tmp_path / "data", 80), tmp_path / "run"
    words = ("pretrain", data, *runs.ENCODER, "--steps", 6, "--batch", 16, "--set", "train.save_every=2", "--out", out)
    assert runs.run(*words, kill=("model.safetensors", 2)).code == -9
    before = _contents(out)
    runs.picture(5000, 1).save(data / "arc" / "new.png")
    message = refused(*words, "--quiet")
    assert re.match(
        r"the data changed since the run began \(hash \w{12}, now \w{12}\); restore it, or use another --out", message
    )
    assert _contents(out) == before
    (data / "arc" / "new.png").unlink()
    runs.succeed(*words)


def test_a_run_of_a_gpu_is_not_resumed_without_one(refused: Refused, run: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["train"]["device"] = "cuda"
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    message = refused("pretrain", runs.pictures(), "--recipe", "recipe.json", "--out", "run", "--quiet")
    assert (
        message == "'recipe.json' is for device 'cuda', which this machine has not; change train.device in a copy of it"
    )


@pytest.mark.parametrize("damage", ["{", "[]", '{"data": 3}', '{"daata": "x"}'])
def test_damaged_recipe(refused: Refused, tmp_path: Path, damage: str) -> None:
    (tmp_path / "recipe.json").write_text(damage)
    refused("pretrain", runs.pictures(), "--recipe", "recipe.json", "--out", "run", "--quiet")


@pytest.mark.parametrize("damage", ["missing tensor", "other width", "no config", "broken config"])
def test_damaged_bundle(refused: Refused, run: Path, tmp_path: Path, damage: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(run / "encoder", bundle)
    config = json.loads((bundle / "config.json").read_text())
    match damage:
        case "missing tensor":
            safetensors = importlib.import_module("safetensors.torch")
            tensors = safetensors.load_file(bundle / "encoder.safetensors")
            tensors.popitem()
            safetensors.save_file(tensors, bundle / "encoder.safetensors")
        case "other width":
            config["encoder"]["name"] = "resnet10"
            (bundle / "config.json").write_text(json.dumps(config))
        case "no config":
            (bundle / "config.json").unlink()
        case "broken config":
            (bundle / "config.json").write_text("{")
    refused("embed", bundle, runs.pictures(), "--out", "x.npy", "--quiet")


def test_data_of_a_type_that_is_none_is_refused_in_python_too() -> None:
    with pytest.raises(UserError, match="data of type int cannot be opened; pass "):
        api.pretrain(7, steps=1)


def test_ctrl_c_within_a_lock_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known failure: a traceback, "release unlocked lock", where Ctrl-C fell between a wait and its release."""

    def caught_between(*words: object, **options: object) -> None:
        lock = threading.Lock()
        with lock:
            lock.release()
            raise KeyboardInterrupt

    def broken(*words: object, **options: object) -> None:
        raise RuntimeError("of another kind")

    monkeypatch.setattr(cli.tyro.extras, "subcommand_cli_from_dict", caught_between)
    assert cli.main(["tasks"]) == 130
    assert capsys.readouterr().err == "selftaught: interrupted; type the same command to go on\n"
    monkeypatch.setattr(cli.tyro.extras, "subcommand_cli_from_dict", broken)
    with pytest.raises(RuntimeError, match="of another kind"):
        cli.main(["tasks"])
