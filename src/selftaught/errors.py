"""What is said to the person at the terminal, and what can go wrong by their hand: the value, the constraint, the fix."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """A request that cannot be met. The command line prints the message alone and exits with code 2."""

    exit_code = 2


class RunStopped(UserError):
    """A run that had to stop by itself (NaN loss, disk full, out of memory); everything saved so far is kept."""

    exit_code = 3


class BadSample(Exception):
    """One sample that cannot be used; the message is the reason shown in the list of skipped samples."""


def say(line: str) -> None:
    """A line for the person at the terminal, on standard error; results go to standard output.

    In one write: print's second, of the newline, is lost if Ctrl-C comes between the two, and the last line runs on.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with its nearest match.

    >>> print(unknown("pretext", "simclrr", ["mae", "simclr"]))
    unknown pretext 'simclrr'; did you mean 'simclr'? Known: mae, simclr
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    shown = ", ".join(options[:12]) + (f" and {len(options) - 12} more" if len(options) > 12 else "")
    return UserError(f"unknown {kind} '{name}'{hint} Known: {shown}")
