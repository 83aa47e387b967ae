"""Lines on standard error stay whole when Ctrl-C comes."""

import sys

import pytest

from selftaught import errors


class _Interrupted:
    """A stream during whose write Ctrl-C arrives: what was written is out, the call does not return."""

    def __init__(self) -> None:
        self.out = ""

    def write(self, text: str) -> None:
        self.out += text
        raise KeyboardInterrupt

    def flush(self) -> None:
        pass


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Interrupted()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt):
        errors.say("preparing")
    assert stream.out == "preparing\n"
