"""Running text: its pieces begin and end anywhere, so nothing marks a beginning or an end."""

from __future__ import annotations

import torch
from torch import Tensor

from selftaught.batch import Batch, Tokens
from selftaught.modality.text import TextModality


class RunningText(TextModality):
    """Token sequences without special tokens, of at most `length` tokens; for causal language models, as GPT's.

    A batch's inputs are those of `TextModality`, in rows of up to 2 * length tokens: `window` draws where in a row it
    begins.
    """

    running, frame = True, 0

    def plain(self, batch: Batch) -> Tokens:
        """The first `size` tokens of each row."""
        return self._from(batch, torch.zeros_like(batch.inputs["length"]), self.size)

    def window(self, batch: Batch, stream: int) -> Tokens:
        """`size` tokens and the one that follows them, from anywhere in a row; a function of (seed, step, stream, sample)."""
        free = (batch.inputs["length"] - self.size).clamp_min(1)
        begin = (batch.uniform(stream, 1)[:, 0].double() * free).long().clamp_max(free - 1)
        return self._from(batch, begin, self.size + 1)

    def _from(self, batch: Batch, begin: Tensor, most: int) -> Tokens:
        """At most `most` tokens of each row, from `begin` on."""
        ids, starts = batch.inputs["ids"], batch.inputs["starts"]
        length = (batch.inputs["length"] - begin).clamp_max(most)
        at = torch.arange(int(length.max()) if len(length) else 0, device=ids.device)
        valid = at < length[:, None]
        where = (begin[:, None] + at).clamp_max(max(ids.shape[1] - 1, 0))
        return Tokens(ids.gather(1, where).masked_fill(~valid, self.tokenizer.pad), valid, starts.gather(1, where))

    def maskable(self, tokens: Tokens) -> Tensor:
        """All real tokens."""
        return tokens.valid

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "running": True}
