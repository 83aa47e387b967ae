"""Pairs of texts: no encoder learns from them by itself, but they say whether close features mean close texts."""

from selftaught.data.pair_audit import PairAudit, audit_pairs
from selftaught.data.text_pairs import PairSource
from selftaught.train.progress import Meter
from selftaught.workflow.kinds.base import Audited, Data, leaked


class Pairs(Data):
    """Pairs of texts, with a score or without."""

    name, noun, evaluation = "text_pairs", "pairs of texts", "similarity"

    def audit(self, source: PairSource, other: PairSource | None, quiet: bool) -> Audited:
        texts = 2 * (len(source) + (0 if other is None else len(other)))
        with Meter("look for copies", texts, quiet=quiet) as meter:
            found = audit_pairs(source, other, meter.update)
        scores = "none: evaluate finds each target by its source among all (retrieval)"
        if found.scores is not None:
            low, middle, high = found.scores
            scores = f"{low:g} to {high:g}, median {middle:g}: evaluate sets cosines beside them (similarity)"
        lines = [
            ("pairs", f"{found.pairs}"),
            *_sides(found),
            ("scores", scores),
            ("left out", f"{found.skipped_count}" + "".join(f"\n{n}: {r}" for n, r in found.skipped[:10])),
            ("duplicates", f"{found.exact_extra} exact copies of pairs; {found.same} pairs of a text and itself"),
            *(("", " = ".join(group[:4])) for group in found.exact[:3]),
            (
                "ambiguous",
                f"{found.several_targets} sources with several targets, {found.several_sources} targets with several sources",
            ),
            *((f"source {name}".rstrip(), words) for name, words in leaked(found.source)),
            *((f"target {name}".rstrip(), words) for name, words in leaked(found.target)),
        ]
        return Audited(found.to_json(), {}, lines)


def _sides(found: PairAudit) -> list[tuple[str, str]]:
    lines = []
    for name, side in (("source", found.source), ("target", found.target)):
        low, middle, high = side.length
        scripts = ", ".join(f"{script} {share:.0%}" for script, share in side.scripts.items()) or "no letters"
        size = f"{low}-{high} characters, median {middle} ({side.words} words between spaces)"
        copies = f"{side.samples - side.exact_extra} different texts, {side.near_count} with a near duplicate"
        lines.append((name, f"{copies}; {size}; {scripts}"))
    return lines
