"""Running text: its pieces begin and end anywhere, so nothing marks a beginning or an end."""

from __future__ import annotations

import torch
from torch import Tensor

from selftaught.batch import Batch, Tokens
from selftaught.modality.text import TextModality, TextView, closed_up


class RunningText(TextModality):
    """Token sequences without special tokens, of at most `length` tokens; for causal language models, as GPT's.

    A batch's inputs are those of `TextModality`, in rows of up to 2 * length tokens: `window` draws where in a row it
    begins.
    """

    running = True

    @property
    def room(self) -> int:
        """All of a sequence is text."""
        return self.size

    def plain(self, batch: Batch) -> Tokens:
        """The first `size` tokens of each row."""
        return self._from(batch, torch.zeros_like(batch.inputs["length"]), self.size)

    def window(self, batch: Batch, stream: int) -> Tokens:
        """`size` tokens and the one that follows them, from anywhere in a row; a function of (seed, step, stream, sample)."""
        free = (batch.inputs["length"] - self.size).clamp_min(1)
        begin = (batch.uniform(stream, 1)[:, 0].double() * free).long().clamp_max(free - 1)
        return self._from(batch, begin, self.size + 1)

    def view(self, batch: Batch, view: TextView, stream: int) -> Tokens:
        """One run of each text's tokens, some of them left out; at least one stays."""
        whole = self.plain(batch)
        count = whole.valid.sum(1)
        u = batch.uniform(stream, whole.ids.shape[1] + 2)
        low, high = view.crop
        kept = ((low + u[:, 0] * (high - low)) * count).ceil().clamp_min(1)
        begin = (u[:, 1] * (count - kept + 1)).floor()
        at = torch.arange(whole.ids.shape[1], device=u.device)
        inside = (at >= begin[:, None]) & (at < (begin + kept)[:, None])
        stays = inside & (u[:, 2:] >= view.drop)
        stays.scatter_(1, u[:, 2:].masked_fill(~inside, -1.0).argmax(1, keepdim=True), True)
        return closed_up(whole, stays & whole.valid, self.tokenizer.pad)

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
