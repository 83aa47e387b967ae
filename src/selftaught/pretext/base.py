"""What every pretext task is: an nn.Module from a Batch to a Step."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selftaught.batch import Answers, Batch, Seen, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError, unknown
from selftaught.modality.base import Modality
from selftaught.settings import from_json, to_json

# An encoder for each ability; one that stands before another has that one's ability too, where a task needs both.
ABLE = {
    "keep": "a vit_* encoder, such as vit_micro",
    "hide": "a vit_* encoder, such as vit_micro",
    "sizes": "a resnet* or vit_* encoder, such as resnet10_x0.5",
    "causal_pixels": "an igpt_* encoder, such as igpt_nano",
    "decoder": "a bert_* encoder, such as bert_mini",
    "generator": "a bert_* encoder, such as bert_mini",
    "bidirectional": "a bert_* or modernbert_* encoder, such as bert_mini",
    "masked_head": "a bert_* or modernbert_* encoder, such as bert_mini",
    "causal": "a gpt2* encoder, such as gpt2_mini",
    "item_words": "a tower_* encoder, such as tower_small",
    "causal_items": "a sasrec_* encoder, such as sasrec_small",
    "bidirectional_items": "a bert4rec_* encoder, such as bert4rec_small",
    "graph_items": "a lightgcn_* encoder, such as lightgcn_small",
}


def able(abilities: frozenset[str]) -> str:
    """Which encoder has all of these abilities, with an example."""
    return next((said for ability, said in ABLE.items() if ability in abilities), "another one")


class Pretext(nn.Module, ABC):
    """A pretext task: the encoder under training, what else the method trains, and its loss.

    A subclass lives in a file of its own and says in class variables what it is:
        Config: frozen dataclass of its settings, the paper's defaults.
        family, paper: for the lists a user reads.
        kinds: kinds of data it works on.
        needs: abilities its encoder must have (see Encoder.abilities).
        wants: what the data should offer, in the words of `data.audit.offers`; `selftaught inspect` says whether it does.
        supervised: whether it reads labels. A contract test changes the labels and demands the same loss otherwise.
        small_machine: settings that replace the paper's where there is no GPU, by kind of data: published ones are for
            hundreds of epochs.
        collapses: whether giving all samples one feature could satisfy its loss, so that the watchdog looks for it. Not so
            where hidden tokens are predicted: features of a text's tokens share a large mean, which is no collapse.
        kept: modules beside the encoder that its bundle keeps, {name of the file: attribute}.
        splits_batch: whether micro-batches of an accumulated step give the same gradient as the whole batch; not so for
            losses that compare the samples of a batch, or take the mean over what differs in number.
        constant_lr: parts whose learning rate stays at its peak, by their attribute's name.
        running: whether it takes pieces of running text (`Modality.running`).
        continues: whether it learns how a text goes on, by its encoder's embeddings: what `selftaught generate` asks of it.
    """

    Config: ClassVar[type]
    family: ClassVar[str]
    paper: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset({"image"})
    needs: ClassVar[frozenset[str]] = frozenset()
    wants: ClassVar[frozenset[str]] = frozenset()
    supervised: ClassVar[bool] = False
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {}
    collapses: ClassVar[bool] = True
    kept: ClassVar[dict[str, str]] = {}
    splits_batch: ClassVar[bool] = True
    constant_lr: ClassVar[frozenset[str]] = frozenset()
    running: ClassVar[bool] = False
    continues: ClassVar[bool] = False

    def __init__(self, encoder: Encoder, modality: Modality, config: Any) -> None:
        super().__init__()
        self.name = name = type(self).__module__.rpartition(".")[2]
        if missing := self.needs - encoder.abilities:
            raise UserError(
                f"pretext '{name}' needs an encoder that can {', '.join(sorted(missing))}; "
                f"'{encoder.config.name}' cannot; use {able(type(self).needs)}"
            )
        if modality.name not in self.kinds:
            raise UserError(f"pretext '{name}' works on {', '.join(sorted(self.kinds))}, not on {modality.name}")
        if modality.running and not self.running:
            raise UserError(f"pretext '{name}' needs texts that begin and end; leave out text.running, or use clm")
        self.encoder = encoder
        self.modality = modality
        self.config = config

    @abstractmethod
    def forward(self, batch: Batch) -> Step:
        """Loss and metrics of a batch; all randomness comes from the batch's keys."""

    def show(self, batch: Batch) -> Shown | None:
        """What is read of a batch and how often each thing was drawn, by the very draws of `forward`; `selftaught preview`
        shows it. None: there is nothing to see."""
        return None

    def rebuilt(self, batch: Batch) -> tuple[Seen, ...]:
        """Pictures for the report, [B, C, S, S] normalised, all of one size: what is there, what is read of it, and what the
        task makes of that. None where it makes no pictures."""
        return ()

    def answers(self, batch: Batch) -> Answers | None:
        """What the task says where its question has one of a few answers: the report's table of confusions."""
        return None

    def before_step(self, progress: float) -> None:  # most tasks have nothing to do here
        """Called before each optimiser step, when all gradients are there, with the share of the run done: what is to stay as
        it is drops its gradient."""

    def after_step(self, progress: float) -> None:  # most tasks have nothing to do here
        """Called after each optimiser step with the share of the run done: momentum encoders, queues, centres."""

    def project(self, pooled: Tensor) -> Tensor:
        """What the loss compares, made from pooled features: a projector can collapse while the encoder still looks well.

        Tasks whose loss does not act on an embedding return `pooled` itself.
        """
        return pooled

    def chance(self, batch_size: int) -> float | None:
        """The loss of a model that has learnt nothing, or None where no such figure exists."""
        return None


def whole_view(modality: Modality, changes: dict[str, Any] | None, **published: Any) -> Any:
    """The kind of data's light view as a paper has it and then changed, for tasks whose places are those of the encoder's
    patches: UserError for a view of another size than the encoder's."""
    light = modality.light_view()
    view = customised(dataclasses.replace(light, **published), changes)
    if view.size not in (None, light.size):
        raise UserError(
            f"setting 'pretext.view.size' is {view.size}; this task fills places of the encoder's {light.size} px; leave it "
            f"out, or use --size {view.size}"
        )
    return view


def customised(default: Any, changes: dict[str, Any] | None) -> Any:
    """`default` (a frozen dataclass) with the given fields changed; an unknown field names its nearest match."""
    if not changes:
        return default
    known = {field.name for field in dataclasses.fields(default)}
    for name in changes:
        if name not in known:
            raise unknown("field of the view", name, known)
    return from_json(type(default), {**to_json(default), **changes}, "pretext.view")


def check_size(encoder: Encoder, side: int | None, setting: str) -> None:
    """Raise UserError where the encoder does not read square pictures of `side` pixels, which a setting asks for; None and its
    own size are right."""
    config = encoder.config
    if side in (None, config.size):
        return
    training = encoder.training
    try:
        if side % (encoder.patch or 1):
            raise ValueError(f"no whole patches of {encoder.patch} px")
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, config.channels, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"setting 'pretext.{setting}' is {side}; encoder '{config.name}' does not read pictures of that side; use a "
            "larger one, of whole patches, or another encoder"
        ) from error
    finally:
        encoder.train(training)
