"""evaluate on pairs of texts: similarity where they have scores, else retrieval of each second text by the first."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught import bundle, disk
from selftaught.data.text_pairs import PairSource
from selftaught.errors import UserError, say
from selftaught.evaluation import similarity
from selftaught.reporting import results_table, show, write_report
from selftaught.workflow.evaluate import UNKNOWN, Asked, Split, feature_sets, home, seen_hashes
from selftaught.workflow.prepare import pick_device

_NAMES = {"random_init": "random initialisation", "raw": "TF-IDF"}
_TITLES = {"spearman": "Spearman's correlation", "ndcg@10": "nDCG@10"}


def evaluate(run: Path, loaded: bundle.Bundle, data: Any, pairs: PairSource, asked: Asked) -> dict[str, Any]:
    """Write similarity.json or retrieval.json and the report into the run and print the table; nothing is trained on the
    pairs."""
    seed, quiet = asked.seed, asked.quiet
    if loaded.modality.name != "text":
        raise UserError(f"'{data}' holds pairs of texts, '{run}' an encoder of {loaded.modality.name} data")
    if words := asked.said("train", "labels", "draws"):
        raise UserError(f"{words[0]} is not for pairs of texts, which train nothing; leave it out")
    what = "retrieval" if pairs.scores is None else "similarity"
    sides = Split(pairs.source, np.arange(len(pairs)), pairs.target, np.arange(len(pairs)), {})
    matrices = feature_sets(loaded, sides, asked.against, torch.device(pick_device(asked.device)), quiet)
    found, n = {}, len(pairs)
    if pairs.scores is not None:
        for name, (a, b) in matrices.items():
            found[name] = similarity.measure_scored(a, b, pairs.scores, seed=seed)
    else:
        queries, documents, relevant = _questions(pairs)
        n = len(queries)
        for name, (a, b) in matrices.items():
            found[name] = similarity.measure_retrieval(a[queries], b[documents], relevant, seed=seed)
    seen = seen_hashes(run)
    known = np.isin(pairs.source.hashes, seen) | np.isin(pairs.target.hashes, seen)
    protocol: dict[str, Any] = {"pairs": len(pairs), **pairs.left_out()}
    protocol |= {"text_seen_by_pretraining": int(known.sum()) if len(seen) else UNKNOWN}
    protocol |= {"interval": "95 %, bootstrap over pairs or queries"}
    protocol |= {"raw": "TF-IDF, its terms from the first texts", "ties": "ranked at their expected place"}
    result = {
        "protocol": protocol,
        "data": str(data),
        "data_hash": pairs.fingerprint,
        "seed": seed,
        "asked": asked.said(),
    }
    result |= {"rows": _rows(found, what, n, seed), **_compared(found)}
    disk.write_json(home(run) / f"{what}.json", result)
    page = write_report(home(run))
    if not quiet:
        show(results_table(result))
        say(f"report: {page}")
    return result


def _questions(pairs: PairSource) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """First places of the texts that differ on either side, and for each query the documents that it is paired with."""
    _, queries, query = np.unique(pairs.source.hashes, return_index=True, return_inverse=True)
    _, documents, document = np.unique(pairs.target.hashes, return_index=True, return_inverse=True)
    by_query = document[np.argsort(query, kind="stable")]
    return queries, documents, [np.unique(d) for d in np.split(by_query, np.bincount(query).cumsum()[:-1])]


def _rows(found: dict[str, dict[str, similarity.Resampled]], what: str, n: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for name, figures in found.items():
        for metric, (value, resampled) in figures.items():
            _, low, high = similarity.interval(value, resampled)
            rows.append(
                {"measure": what, "features": name, "labels": None, "labels_n": 0, "metric": metric, "value": value}
                | {"low": low, "high": high, "seeds": [seed], "n": n}
            )
    return rows


def _compared(found: dict[str, dict[str, similarity.Resampled]]) -> dict[str, Any]:
    """The encoder beside each baseline on the same resamples, as rows and in words."""
    rows, sentences = [], []
    for baseline, words in _NAMES.items():
        for metric, (value, resampled) in found["pretrained"].items():
            other, others = found[baseline][metric]
            _, low, high = similarity.interval(value - other, resampled - others)
            both = {"features": "pretrained", "against": baseline}
            rows.append({"metric": metric, **both, "value": value - other, "low": low, "high": high})
            if metric in _TITLES:
                said = "beats" if low > 0 else "is behind" if high < 0 else "cannot be told from"
                gap = f"{value - other:+.3f} {_TITLES[metric]} [{low:.3f}, {high:.3f}]"
                sentences.append(f"Pretraining {said} {words}: {gap}.")
    return {"differences": rows, "verdict": sentences}
