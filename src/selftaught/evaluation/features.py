"""Features of a source's samples: what every measure, map and file of embeddings is made of."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.batch import Batch
from selftaught.data import Source
from selftaught.encoders import Encoder
from selftaught.modality.base import Modality
from selftaught.train.order import LOADERS, ahead

_BATCH = 256
_RAW_SIDE = 32
_NO_STEP = 1 << 40  # the key of views that belong to no training step

Progress = Callable[[int, int], None]


def raw_batches(source: Source, index: np.ndarray, device: torch.device) -> Iterator[Batch]:
    """The samples at `index`, in order, as batches on a device."""

    def fetch(part: np.ndarray) -> Batch:
        return Batch(source.fetch(part), torch.from_numpy(part), 0, _NO_STEP)

    parts = (index[start : start + _BATCH] for start in range(0, len(index), _BATCH))
    return ahead((partial(fetch, part) for part in parts), LOADERS["cuda"] if device.type == "cuda" else 0, device)


def encode(
    encoder: Encoder,
    modality: Modality,
    source: Source,
    index: np.ndarray,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """Pooled features [n, width] of the samples at `index`, float32 on the CPU; the encoder in evaluation mode."""
    network: Any = encoder.to(device).eval()
    network.to(memory_format=torch.channels_last)
    parts, done = [], 0
    with torch.inference_mode():
        for batch in raw_batches(source, index, device):
            parts.append(network(modality.plain(batch)).pooled.float().cpu())
            done += len(batch)
            if progress is not None:
                progress(done, len(index))
    return torch.cat(parts) if parts else torch.empty(0, encoder.width)


def raw(modality: Modality, source: Source, index: np.ndarray) -> Tensor:
    """The pixels themselves [n, d], averaged down to at most 32 px a side: the baseline that needs no encoder."""
    parts = []
    for batch in raw_batches(source, index, torch.device("cpu")):
        x = modality.plain(batch)
        if x.shape[-1] > _RAW_SIDE:
            x = torch.nn.functional.interpolate(x, size=_RAW_SIDE, mode="area")
        parts.append(x.flatten(1))
    return torch.cat(parts)
