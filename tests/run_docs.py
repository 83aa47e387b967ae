"""Type the commands of README and docs, as they stand, in an empty folder that holds real pictures.

Two things differ from a person's typing, and only these: budgets (`--minutes 10`, `--epochs 20`) are cut to a few steps,
and commands that set up the machine (make, pip, git) are left to the Makefile, which runs them.

    python tests/run_docs.py README.md docs/new_pretext.md
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.modality.corpus import english

BLOCK = re.compile(r"^```(bash|python)(?: file=(\S+))?\n(.*?)^```", re.M | re.S)
SETUP = ("make ", "pip ", "git ", "cd ", "torchrun ")
BUDGETS = ((r"--minutes [\d.]+", "--steps 30"), (r"--epochs [\d.]+", "--epochs 2"))


def pictures(folder: Path) -> None:
    """scikit-learn's digits as folders of PNG: `pictures` with classes, `test` with classes, `new` without."""
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if i % 5 == 0 else "pictures"
        target = folder / part / str(label)
        target.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((16, 16), Image.Resampling.BICUBIC)
        picture.save(target / f"{i:04d}.png")
        if i < 40:
            (folder / "new").mkdir(exist_ok=True)
            picture.save(folder / "new" / f"{i:04d}.png")


def texts(folder: Path) -> None:
    """`texts`: docstrings of the standard library, a folder for each module; `book.txt`: all of them; `reviews.csv`: Chinese,
    label and review."""
    (folder / "book.txt").write_text("\n\n".join(text for text, _ in english()), "utf-8")
    for i, (text, module) in enumerate(english()):
        target = folder / "texts" / module
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{i:04d}.txt").write_text(text, "utf-8")
    dishes, words = (
        ("面条", "米饭", "披萨", "饺子", "烤鸭", "豆腐", "牛肉", "蛋糕"),
        {"1": "好吃热便宜新鲜", "0": "难吃冷昂贵油腻"},
    )
    rows = [
        f"{label},{dish}{word}，第{i}次点{other}也{word}。"
        for label, characters in words.items()
        for word in (characters[:2], characters[2], characters[3:5], characters[5:])
        for dish in dishes
        for i, other in enumerate(dishes)
    ]
    (folder / "reviews.csv").write_text("label,review\n" + "\n".join(rows) + "\n", "utf-8")


def events(folder: Path) -> None:
    """`log.csv`: who took what, when; after item i comes i + 1 or i + 2, mostly. `items.csv`: what the items are."""
    draw, rows = np.random.default_rng(0), []
    for user in range(300):
        item = int(draw.integers(40))
        for at in range(int(draw.integers(4, 16))):
            rows.append(f"u{user},i{item},{1_600_000_000 + 3600 * len(rows) + at}")
            item = (item + int(draw.integers(1, 3)) if draw.random() < 0.9 else int(draw.integers(40))) % 40
    (folder / "log.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n", "utf-8")
    films = [f"i{i},Part {i} of the story,{'funny|old' if i % 2 else 'sad'}" for i in range(40)]
    (folder / "items.csv").write_text("item,title,genres\n" + "\n".join(films) + "\n", "utf-8")


def pairs(folder: Path) -> None:
    """`pairs.csv` and `pairs-test.csv`: sentences and their translations; `sentences.txt`: those of both languages."""
    nouns = {
        "dog": "Hund",
        "cat": "Kater",
        "man": "Mann",
        "ball": "Ball",
        "tree": "Baum",
        "car": "Wagen",
        "boat": "Kahn",
    }
    verbs = {"sees": "sieht", "likes": "mag", "takes": "nimmt", "finds": "findet"}
    rows = [
        (f"The {a} {v} the {b}.", f"Der {nouns[a]} {verbs[v]} den {nouns[b]}.")
        for a in nouns
        for v in verbs
        for b in nouns
    ]
    for name, part in (("pairs.csv", [r for i, r in enumerate(rows) if i % 5]), ("pairs-test.csv", rows[::5])):
        (folder / name).write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in part), "utf-8")
        if name == "pairs.csv":
            (folder / "sentences.txt").write_text("".join(f"{a}\n{b}\n" for a, b in part), "utf-8")


def shortened(line: str) -> str:
    for pattern, replacement in BUDGETS:
        line = re.sub(pattern, replacement, line)
    return line


def run(document: Path, folder: Path) -> int:
    """Run a document's blocks in order; returns how many commands ran."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["SELFTAUGHT_CACHE"] = str(folder / ".cache")
    count = 0
    for language, name, body in BLOCK.findall(document.read_text(encoding="utf-8")):
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(body, encoding="utf-8")
            continue
        if language == "python":
            commands = [[sys.executable, "-c", body]]
            shown = [body.strip().splitlines()[0] + " ..."]
        else:
            lines = [x for x in body.replace("\\\n", " ").splitlines() if x.strip() and not x.startswith(("#", *SETUP))]
            commands = [["bash", "-c", shortened(x)] for x in lines]
            shown = [shortened(x) for x in lines]
        for command, text in zip(commands, shown, strict=True):
            print(f"{document}: {text}", flush=True)
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
            if done.returncode:
                sys.exit(f"{document}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            count += 1
    return count


def main(names: list[str]) -> None:
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            pictures(Path(folder))
            texts(Path(folder))
            pairs(Path(folder))
            events(Path(folder))
            count = run(Path(name).resolve(), Path(folder))
            if not count:
                sys.exit(f"{name}: no command was found; the check would prove nothing")
            print(f"{name}: {count} commands ran")


if __name__ == "__main__":
    main(sys.argv[1:])
