"""The guard against forgetting, from the data that --general names."""

import copy
from typing import Any

import numpy as np
import torch

from selftaught import rng
from selftaught.batch import Batch
from selftaught.data import Source
from selftaught.errors import UserError
from selftaught.evaluation.guard import SAMPLES, Guard, drawn
from selftaught.modality.base import Modality
from selftaught.pretext import find
from selftaught.recipe import Recipe
from selftaught.workflow.kinds import Training, kind_called


def guard_of(recipe: Recipe, general: Source, seen: np.ndarray, modality: Modality, training: Training) -> Guard:
    """The guard of a run that continues from weights; general samples that the run trains on are left out.

    seen: hashes of the samples that teach. Raises UserError for general data of another kind, or too few samples of it.
    """
    if general.kind != recipe.kind:
        raise UserError(f"--general is {general.kind} data, and the run's is {recipe.kind}; name data of the same kind")
    if "graph_items" in find(recipe.pretext).needs:  # it knows the users of its own log alone
        raise UserError(f"--general is not for {recipe.pretext}, which knows no users but its own; leave it out")
    seed = recipe.train.seed
    fresh = np.flatnonzero(~np.isin(general.hashes, seen))
    some = np.sort(fresh[rng.permutation(len(fresh), seed, 8)[:SAMPLES]])
    nothing = np.empty(0, np.int64)
    if len(some) == 0:
        raise UserError("--general holds nothing but samples that pretraining trains on; name held-out data")
    # What a kind of data hangs on the modality for training is of the run's own data; a copy of it takes that of these.
    own = copy.copy(modality)
    read = kind_called(recipe.kind).training(general.subset(some), own, nothing, np.arange(len(some)), quiet=True)
    samples = drawn(read.source, read.held, seed)
    one = samples.rows[:1]
    modality.plain(Batch(samples.source.fetch(one), torch.from_numpy(one), 0, 0))  # refused before the run begins
    return Guard(samples, drawn(training.source, training.held, seed), seed, recipe.train.health_every)


def opened(recipe: Recipe | None, request_general: str | None, general: Any) -> Any:
    """What to open as general data: the object that was given, or what the recipe of an earlier run names; None: nothing."""
    named = request_general if recipe is None else recipe.general
    return None if named is None else (general if general is not None else named)
