"""What every encoder offers, whatever kind of data it reads."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.batch import Encoded


@dataclass(frozen=True)
class EncoderConfig:
    """All that is needed to build an encoder again.

    name: a small encoder of our own (`resnet10_x0.5`, `vit_micro`, `igpt_nano` ...), any timm model name, an encoder of text
        (`bert_mini` ..., or a local Hugging Face folder), or one of histories (`sasrec_small` ...).
    size, channels: the pictures it reads, in pixels and planes; of text and histories, size is the longest, in tokens or events.
    weights: None (random), a local file (.safetensors, or .pth read without executing code), "timm" to take the weights
        timm publishes under that name, or "hf:REPO" for those of a Hugging Face repository; the latter two may need the
        network.
    drop_path: stochastic depth rate, where the architecture has it.
    published: build the architecture as its authors did, as it is wherever `weights` are given. Otherwise its stem, its
        patches and its pooling are fitted to small pictures and to being trained from nothing.
    options: further arguments of timm's model, of a repository that names some; of text, the whole configuration; of igpt_*,
        what `PixelEncoder` says.
    vocabulary: ids of tokens or items that the encoder knows; 0 says that it reads pictures.
    bundled: the file of `weights` is of a bundle of ours, whose architecture `published` tells.
    """

    name: str
    size: int
    channels: int = 3
    weights: str | None = None
    drop_path: float = 0.0
    published: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 0
    bundled: bool = False

    def bare(self) -> "EncoderConfig":
        """The same architecture with random weights, which neither a file nor a hub is asked for."""
        return replace(self, weights=None, published=self.as_published, bundled=False)

    @property
    def weights_file(self) -> Path | None:
        """The local file that `weights` names, if they do not come from a hub."""
        hub = self.weights is None or self.weights == "timm" or self.weights.startswith("hf:")
        return None if hub else Path(str(self.weights))

    @property
    def as_published(self) -> bool:
        """Whether the architecture is the published one."""
        return self.published or (self.weights is not None and not self.bundled)


class Encoder(nn.Module):
    """inputs -> Encoded(tokens [B, N, D], pooled [B, width], valid). Inputs are views of pictures, or `Tokens` of text.

    grid: rows and columns in which the tokens of a picture of `config.size` lie; (0, 0) where they are no grid.

    abilities: what a pretext task may ask for beyond `forward(inputs)`:
        "keep": `forward(inputs, keep)` with keep int64 [B, K] encodes only those tokens, so that masked tokens cost
        nothing; `patch` (side in pixels) is then set.
        "hide": `forward(inputs, hide=(which, token))` reads token [D] in the place of the patches that bool [B, N] names.
        "sizes": it reads pictures of other sizes than `config.size`, of whole patches.
        "causal_pixels": `quantise` gives each pixel of a picture one of `colours` colours, `picture` the picture of these; a
        token depends on the colours of the pixels before its own alone.
        "bidirectional": a token's encoding depends on the whole text.
        "masked_head": `masked_head()` makes what predicts hidden tokens, and `embeddings` [V, D] is the table it is tied to.
        "generator": `generator(share)` makes a narrow network on its embeddings that predicts tokens.
        "decoder": `decoder()` makes what writes a text from one vector.
        "causal": a token's encoding depends on it and those before it alone; `embeddings` as above, and `follow(ids, memory)`
        encodes further tokens of a text.
        "items": it reads histories; `next(tokens)` [B, D] says what comes next, `scores(states)` [n, V + 2] of each item, by
        `embeddings`. Besides "causal_items", where an event sees itself and those before it, or "bidirectional_items", or
        "graph_items": `propagate` makes states from a graph of who had what. "item_words": embeddings are made from what is
        known of the items, which `know` takes up.
    """

    config: EncoderConfig
    width: int
    token_width: int
    abilities: frozenset[str] = frozenset()
    grid: tuple[int, int] = (0, 0)
    patch: int = 0
    depth: int = 1

    def forward(self, inputs: Any, keep: Tensor | None = None) -> Encoded:
        """Encode a batch; `keep` only where "keep" is among the abilities."""
        raise NotImplementedError

    def adapted(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this network, by their names in it, from one that was built for inputs of another size."""
        return weights

    def layer_of(self, name: str) -> int:
        """Depth of the parameter called `name`, 0 (input) to `depth` (output): what layer-wise decay counts by."""
        raise NotImplementedError


def item_scores(states: Tensor, table: Tensor) -> Tensor:
    """Of states [n, D] the scores [n, V + 2] of the ids of a table [V + 2, D]; -inf for its first, no item, and its last, the
    mask."""
    found = states @ table.T
    return found.index_fill(1, torch.tensor([0, len(table) - 1], device=found.device), -torch.inf)
