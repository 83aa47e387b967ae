"""Translation: a Transformer decoder on top of a pretrained encoder, trained with teacher forcing.

Vaswani et al. 2017, "Attention Is All You Need"; the encoder starts from pretraining as in Rothe et al. 2020, "Leveraging
Pre-trained Checkpoints for Sequence Generation Tasks" (their BERT2RND), but with one table of embeddings for both.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.batch import Batch, Step, Tokens
from selftaught.downstream.base import Downstream
from selftaught.downstream.beam import beam_search
from selftaught.downstream.decoder import Decoder, KeyValue, Memory
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.tokens import token_accuracy, token_cross_entropy
from selftaught.modality.base import Modality
from selftaught.modality.text import TextModality

TARGET = "target_"
"""What the names of the inputs of a batch begin with that are of the translation; the others are of the source."""


class Translate(Downstream):
    """Encoder and decoder. A batch's inputs are those of a text twice, the second time with names that begin in TARGET."""

    splits_batch = False  # the mean is over the tokens of a step, and micro-batches hold different numbers of them

    @dataclass(frozen=True)
    class Config:
        """mode: of the encoder: "full", "head" (the decoder alone is trained) or "lastK". layers, heads: of the decoder;
        0 heads: one for each 64 of its width. smoothing: of the targets. beam: width of the search, 1 is greedy. power:
        of the length that a hypothesis' log-probability is divided by."""

        mode: str = "full"
        layers: int = 2
        heads: int = 0
        dropout: float = 0.1
        smoothing: float = 0.1
        beam: int = 4
        power: float = 1.0

        def __post_init__(self) -> None:
            checks = {
                "layers": (self.layers >= 1, "1 or more"),
                "heads": (self.heads >= 0, "0 (automatic) or more"),
                "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
                "smoothing": (0 <= self.smoothing < 1, "in [0, 1)"),
                "beam": (self.beam >= 1, "1 or more"),
                "power": (self.power >= 0, "0 or more"),
            }
            for field, (good, constraint) in checks.items():
                if not good:
                    raise UserError(f"setting 'task.{field}' is {getattr(self, field)}; it must be {constraint}")

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        if not isinstance(modality, TextModality):
            raise UserError(f"task 'translate' works on text, not on {modality.name}")
        if "masked_head" not in encoder.abilities:
            raise UserError(
                f"task 'translate' needs an encoder that reads a whole text; '{encoder.config.name}' does not; "
                "use a bert_* encoder, such as bert_mini"
            )
        super().__init__(encoder, modality, config.mode)
        self.modality: TextModality
        self.config = config
        heads = config.heads or max(1, encoder.width // 64)
        self.decoder = Decoder(encoder.width, config.layers, heads, modality.size, config.dropout)
        table = cast(Any, encoder).embeddings
        self.bias = nn.Parameter(torch.zeros(len(table)))
        special = {
            modality.tokenizer.pad,
            modality.tokenizer.unknown,
            modality.tokenizer.first,
            modality.tokenizer.mask,
        }
        self.register_buffer("never", torch.tensor(sorted(special)), persistent=False)

    @property
    def _table(self) -> Tensor:
        return cast(Any, self.encoder).embeddings

    def target(self, batch: Batch) -> Tokens:
        """The translations, between their special tokens."""
        given = {k.removeprefix(TARGET): x for k, x in batch.inputs.items() if k.startswith(TARGET)}
        return self.modality.plain(replace(batch, inputs=given))

    def read(self, batch: Batch) -> Memory:
        """The sources, as the decoder attends to them."""
        tokens = self.modality.plain(batch)
        return self.decoder.read(self.encoder(tokens).tokens, tokens.valid)

    def forward(self, batch: Batch) -> Step:
        """Each token of the translation is guessed from the true ones before it; all at once."""
        target = self.target(batch)
        hidden, _ = self.decoder(F.embedding(target.ids[:, :-1], self._table), self.read(batch))
        guessed = target.valid[:, 1:]
        logits = F.linear(hidden[guessed], self._table, self.bias).float()  # argmax is slow in bf16
        ids = target.ids[:, 1:][guessed]
        accuracy = token_accuracy(logits, ids)
        return Step(token_cross_entropy(logits, ids, self.config.smoothing), {"accuracy": accuracy})

    def generate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, size - 1] of the translations, [SEP] behind their ends, and their scores [B]."""
        memory = self.read(batch)
        past: list[KeyValue] | None = None

        def step(tokens: Tensor, parents: Tensor) -> Tensor:
            nonlocal past
            if past is not None:
                past = [layer.rows(parents) for layer in past]
            hidden, past = self.decoder(F.embedding(tokens[:, None], self._table), memory, past)
            logits = F.linear(hidden[:, -1], self._table, self.bias).float()
            return logits.index_fill(1, cast(Tensor, self.never), -torch.inf).log_softmax(1)

        t, limit = self.modality.tokenizer, self.modality.size - 1
        return beam_search(
            step, len(batch), t.first, t.last, limit, self.config.beam, self.config.power, memory.mask.device
        )

    def predict(self, batch: Batch) -> list[str]:
        """Translations, by beam search."""
        last = self.modality.tokenizer.last
        rows = self.generate(batch)[0].tolist()
        return [self.modality.tokenizer.decode(ids[: ids.index(last)] if last in ids else ids) for ids in rows]
