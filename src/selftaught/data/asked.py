"""How users name data: a path, and behind a question mark what is said of it."""

from pathlib import Path
from urllib.parse import parse_qsl


def cut(data: str) -> tuple[Path, str]:
    """Path and words of PATH?WORDS. Words may hold slashes, and the name of a file or folder a question mark."""
    path, marks = Path(data).expanduser(), [i for i, c in enumerate(data) if c == "?"]
    if not marks or path.exists():
        return path, ""
    if "?" in path.name and path.parent.is_dir():
        name, _, words = path.name.partition("?")
        return path.with_name(name), words
    at = next((i for i in marks if Path(data[:i]).expanduser().exists()), marks[0])
    return Path(data[:at]).expanduser(), data[at + 1 :]


def parted(data: str) -> tuple[Path, dict[str, str]]:
    """Of PATH?NAME=VALUE&NAME=VALUE the path and the values.

    >>> parted("logs/may.csv?items=films/all.csv")[1]
    {'items': 'films/all.csv'}
    """
    path, words = cut(data)
    return path, dict(parse_qsl(words))
