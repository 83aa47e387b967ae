"""evaluate on an event log: what comes next is looked for among all items, beside baselines that learn from the same events."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from selftaught import bundle, disk, rng
from selftaught.batch import Batch
from selftaught.data.events import EventSource
from selftaught.data.protocols import Cases, Parts, Protocol
from selftaught.data.ragged import inside
from selftaught.encoders import build
from selftaught.encoders.graphs import adjacency
from selftaught.errors import UserError, say
from selftaught.evaluation import recommenders
from selftaught.evaluation.ranking import Ranking, difference
from selftaught.evaluation.similarity import interval
from selftaught.modality.event import EventModality, Graph
from selftaught.reporting import ranking_table, show, write_report
from selftaught.settings import from_json
from selftaught.train.progress import Meter
from selftaught.workflow.evaluate import Asked, home
from selftaught.workflow.kinds.events import known_items, parts_of
from selftaught.workflow.prepare import pick_device

_AT_ONCE = 1 << 25  # scores held at a time
_CASES = 20_000  # at most so many are ranked: an interval over more is narrow enough
_CUTS = (5, 10, 20)
_CHOSEN_BY = "ndcg@10"
_TITLES = {"random_init": "random initialisation", "itemknn": "ItemKNN", "ease": "EASE", "svd": "PureSVD"}
Scores = Callable[[np.ndarray], Tensor]  # positions of cases [B] -> scores [B, V]


class Log:
    """A log in the ids of a catalogue, divided: what teaches, and the cases that are ranked."""

    def __init__(self, source: EventSource, modality: EventModality, filtered: bool, seed: int) -> None:
        self.modality, self.items, self.filtered = modality, len(modality.items), filtered
        self.source = known_items(source, modality)
        self.code = modality.ids(source.items)[source.item] - 1  # of each event; -1: unknown
        parts: Parts = parts_of(source, modality)
        self.train, self.valid = parts.train, self._some(parts.valid, seed)
        self.test = self._some(parts.test, seed)
        self.all_cases = len(parts.test.user)
        self.popularity = np.asarray(self.matrix(*self.train.T).sum(0), np.int64).ravel()

    def _some(self, cases: Cases, seed: int) -> Cases:
        """At most _CASES of the cases, of those that ask for something that is in the catalogue."""
        chosen = np.sort(rng.permutation(len(cases.user), seed, 7)[:_CASES])
        some = Cases(*(x[chosen] for x in cases))
        asks = np.array([len(target) > 0 for target in self.targets(some)], bool)
        return Cases(*(x[asks] for x in some))

    def matrix(self, begin: np.ndarray, end: np.ndarray) -> csr_array:
        """Histories as counts float32 [n, V], each item once."""
        at, row = inside(np.stack([begin, end], 1))
        code = self.code[at]
        row, code = row[code >= 0], code[code >= 0]
        found = csr_array((np.ones(len(row), np.float32), (row, code)), shape=(len(begin), self.items))
        found.data[:] = 1  # several events with one item were added up
        return found

    def targets(self, cases: Cases) -> list[np.ndarray]:
        """The items each case asks for, each once. Where seen ones are not ranked they are not asked for either: among the others
        an item of the history would be found by being one."""
        found = []
        for begin, stop, end in zip(cases.begin.tolist(), cases.stop.tolist(), cases.end.tolist(), strict=True):
            target = np.unique(self.code[stop:end])
            target = target[target >= 0]
            found.append(np.setdiff1d(target, self.code[begin:stop]) if self.filtered else target)
        return found


def encoder_scores(encoder: Any, log: Log, cases: Cases, device: torch.device) -> Scores:
    """What an encoder says of the next item after each case's history."""
    size = log.modality.size
    bounds = np.stack([np.maximum(cases.begin, cases.stop - size), cases.stop], 1)
    histories = log.source.cut(bounds, cases.user)
    encoder = encoder.to(device).eval()

    def scores(index: np.ndarray) -> Tensor:
        batch = Batch(histories.fetch(index), torch.from_numpy(index), seed=0, step=0).to(device)
        with torch.inference_mode():
            found = encoder.scores(encoder.next(log.modality.plain(batch)))
        return found[:, 1 : log.items + 1].float().cpu()

    return scores


def untrained(trained: Any, seed: int, log: Log) -> Any:
    """An encoder with its first weights. It knows what it was given and did not learn: the graph, the words of items."""
    encoder: Any = build(trained.config.bare(), rng.fold(seed) >> 1)
    if "item_words" in encoder.abilities:
        encoder.know(trained.model.items.features)
    if "graph_items" in encoder.abilities:
        at, history = inside(log.train)
        item = torch.from_numpy(log.code[at] + 1)
        graph = Graph.of(torch.from_numpy(history), item.long(), len(log.train), log.items)
        with torch.no_grad():
            a = adjacency(graph.history, graph.item, graph.histories, log.modality.vocabulary)
            encoder.keep(encoder.propagate(a))
    return encoder


def baseline_scores(model: Any, log: Log, cases: Cases) -> Scores:
    """What a baseline says after each case's whole history."""

    def scores(index: np.ndarray) -> Tensor:
        return torch.from_numpy(model.scores(log.matrix(cases.begin[index], cases.stop[index])))

    return scores


def ranked(scores: Scores, log: Log, cases: Cases, filtered: bool, meter: Any) -> Ranking:
    """Every case ranked over the whole catalogue, without what its history holds where `filtered`."""
    found = Ranking(_CUTS, log.popularity)
    targets = log.targets(cases)
    step = max(1, min(256, _AT_ONCE // log.items))
    for start in range(0, len(cases.user), step):
        index = np.arange(start, min(start + step, len(cases.user)))
        seen = log.matrix(cases.begin[index], cases.stop[index]) if filtered else None
        mask = None if seen is None else torch.from_numpy(seen.toarray() > 0)
        found.add(scores(index), [targets[i] for i in index.tolist()], mask)
        meter(len(index))
    return found


def baselines(log: Log, filtered: bool, seed: int, left_out: dict[str, str]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Fitted baselines and their settings, chosen by nDCG@10 on validation cases alone; why others are missing goes to
    `left_out`. They learn from what the encoder learned from."""
    histories = log.matrix(*log.train.T)
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "popularity": (recommenders.Popularity().fit(histories), {}),
        "random": (recommenders.Random(seed).fit(histories), {}),
    }
    for name in recommenders.GRIDS:
        if log.items > recommenders.LARGEST and name != "svd":
            left_out[name] = f"{log.items} items; at most {recommenders.LARGEST} are compared with each other"
            continue
        best = -1.0
        for settings, model in recommenders.candidates(name):
            scores = baseline_scores(model.fit(histories), log, log.valid)
            value = float(ranked(scores, log, log.valid, filtered, lambda n: None).values(_CHOSEN_BY).mean())
            if value > best:
                best, found[name] = value, (model, settings)
    return found


def _rows(found: dict[str, Ranking], one_target: bool, seed: int) -> list[dict[str, Any]]:
    rows = []
    for name, ranking in found.items():
        for metric, (value, resampled) in ranking.figures(seed).items():
            if one_target and metric.startswith("recall"):  # it is the same as HR then
                continue
            _, low, high = interval(value, resampled)
            row = {"measure": "ranking", "features": name, "labels": None, "labels_n": 0, "metric": metric}
            rows.append(
                row | {"value": value, "low": low, "high": high, "seeds": [seed], "n": len(ranking.values(metric))}
            )
    return rows


def _result(found: dict[str, Ranking], log: Log, protocol: Protocol, seed: int) -> dict[str, Any]:
    """Rows, differences, sentences, and what else is told of each list of recommendations."""
    differences, sentences = [], []
    # The strongest baseline is told first.
    for name in sorted(
        (n for n in found if n != "pretrained"), key=lambda name: -found[name].values(_CHOSEN_BY).mean()
    ):
        for metric in (_CHOSEN_BY, "hr@10"):
            value, low, high = difference(found["pretrained"], found[name], metric, seed)
            both = {"features": "pretrained", "against": name}
            differences.append({"metric": metric, **both, "value": value, "low": low, "high": high})
            if metric == _CHOSEN_BY and name != "random":
                said = "beats" if low > 0 else "is behind" if high < 0 else "cannot be told from"
                title = _TITLES.get(name, name)
                sentences.append(f"Pretraining {said} {title}: {value:+.4f} nDCG@10 [{low:+.4f}, {high:+.4f}].")
    lists = {
        name: {**r.coverage(), **r.novelty(), "ndcg@10_by_popularity": r.by_popularity(_CHOSEN_BY)}
        for name, r in found.items()
    }
    cases = {"cases": len(log.test.user), "items": log.items, "interval": "95 %, bootstrap over cases"}
    if log.all_cases > len(log.test.user):
        cases["cases_left_out"] = log.all_cases - len(log.test.user)
    empty = int((log.test.begin == log.test.stop).sum())
    return {
        "protocol": {**protocol.describe(), **cases, **({"without_history": empty} if empty else {})},
        "rows": _rows(found, all(len(target) == 1 for target in log.targets(log.test)), seed),
        "differences": differences,
        "verdict": sentences,
        "lists": lists,
    }


def same_log(source: EventSource, info: dict[str, Any]) -> bool:
    """Whether an encoder learned from these histories, whatever table of items lies beside them."""
    if "log_hash" in info:
        return bool(source.log_hash == info["log_hash"])
    return bool(source.fingerprint == info.get("data_hash"))  # bundles of older versions know that of both together


def evaluate(run: Path, loaded: bundle.Bundle, data: Any, source: EventSource, asked: Asked) -> dict[str, Any]:
    """Rank the test cases of a log under the protocol the encoder was pretrained with, beside its random initialisation and
    baselines; writes ranking.json and the report, prints the table."""
    modality, seed, quiet = loaded.modality, asked.seed, asked.quiet
    if not isinstance(modality, EventModality):
        raise UserError(f"'{data}' is an event log, '{run}' an encoder of {loaded.modality.name} data")
    if words := asked.said("train", "against", "labels", "draws"):
        raise UserError(f"{words[0]} is not for event logs; the protocol says what teaches, baselines are built in")
    protocol = from_json(Protocol, modality.protocol, "event")
    filtered = protocol.seen == "filtered"
    log, where = Log(source, modality, filtered, seed), torch.device(pick_device(asked.device))
    for name, cases in (("test", log.test), ("choose the baselines' settings by", log.valid)):
        if not len(cases.user):
            raise UserError(f"'{data}' has no case to {name} under {protocol.split}; its users need more events")
    random = untrained(loaded.encoder, loaded.info.get("seed", 0), log)
    found, left_out = dict[str, Ranking](), dict[str, str]()
    with Meter("rank", 1, quiet=quiet) as meter:
        done = 0

        def more(n: int) -> None:
            nonlocal done
            done += n
            meter.total = max(meter.total, done, len(log.test.user) * (4 + len(recommenders.GRIDS)))
            meter.update(done)

        for name, encoder in (("pretrained", loaded.encoder), ("random_init", random)):
            found[name] = ranked(encoder_scores(encoder, log, log.test, where), log, log.test, filtered, more)
        settings: dict[str, dict[str, Any]] = {}
        for name, (model, chosen) in baselines(log, filtered, seed, left_out).items():
            found[name] = ranked(baseline_scores(model, log, log.test), log, log.test, filtered, more)
            settings |= {name: chosen} if chosen else {}
    result = _result(found, log, protocol, seed)
    result["protocol"] |= {"baselines": "settings chosen by nDCG@10 on validation cases", "settings": settings}
    result |= {"data": str(data), "data_hash": source.fingerprint, "recipe_hash": loaded.info.get("recipe_hash")}
    result["asked"] = asked.said()
    result["protocol"] |= {"baselines_left_out": left_out} if left_out else {}
    if not same_log(source, loaded.info):
        result["protocol"]["log"] = "not the one of pretraining, which may have learned from what is asked here"
    disk.write_json(home(run) / "ranking.json", result)
    page = write_report(home(run))
    if not quiet:
        show(ranking_table(result))
        say(f"report: {page}")
    return result
