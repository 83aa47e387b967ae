"""Pictures: sized to the machine, normalised by their own statistics, compared with their own pixels."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.batch import Shown
from selftaught.data import Source
from selftaught.data.audit import audit, offers
from selftaught.data.images import ImageSource
from selftaught.encoders import EncoderConfig, choose, named
from selftaught.encoders.pixels import SIZES as PIXELS
from selftaught.errors import UserError
from selftaught.evaluation.features import raw, raw_batches
from selftaught.modality.image import ImageModality
from selftaught.workflow.kinds.base import Audited, Kind, Reading, Training, counted, leaked

_STATISTICS_SAMPLES = 2048
_TILE, _GAP = 96, 2  # px: a smaller picture of a grid is drawn larger; what lies between two
_LARGEST = 224


class Images(Kind):
    """Pictures."""

    name, unit, noun = "image", "px", "pictures"
    largest_batch = {"cpu": 128, "cuda": 256}  # noqa: RUF012
    raw_is = "pixels, averaged down to at most 32 px a side"
    unlabelled = "put the pictures into one folder per class, or name a label column"

    def pick_size(self, source: ImageSource, device: str, needs: frozenset[str]) -> int:
        """Training size in pixels: the data's own where it is small, else what the machine can bear."""
        short = int(np.median(source.sizes.min(axis=1)))
        if short <= 64:
            return max(8, short)
        limit = 96 if device == "cpu" else 224
        return min(limit, short // 8 * 8)

    def fit(
        self, source: ImageSource, size: int, train: np.ndarray, settings: dict[str, Any], encoder: str
    ) -> ImageModality:
        """Preprocessing with the mean and standard deviation of each channel over (a part of) the training samples."""
        if settings:
            raise UserError(
                f"setting 'image.{next(iter(settings))}' is unknown; pictures have no settings of their own"
            )
        some = train[:: max(1, len(train) // _STATISTICS_SAMPLES)]
        total = squares = torch.zeros(source.channels, dtype=torch.float64)
        count = 0
        for part in np.array_split(some, max(1, len(some) // 256)):
            inputs = source.fetch(part)
            pixels = inputs["pixels"].double() / 255  # the canvas beyond a picture is zero and adds nothing
            total = total + pixels.sum(dim=(0, 2, 3))
            squares = squares + pixels.square().sum(dim=(0, 2, 3))
            count += int(inputs["size"].prod(dim=1).sum())
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
        rounded = [tuple(round(float(v), 4) for v in t) for t in (mean, std)]
        return ImageModality(size, source.channels, rounded[0], rounded[1])

    def choose(self, size: int, device: str, needs: frozenset[str]) -> str:
        return choose(size, device, needs)

    def encoder(self, name: str, size: int, source: ImageSource, modality: ImageModality) -> EncoderConfig:
        if name in PIXELS:  # it counts colours, so it undoes the normalisation
            statistics = {"mean": list(modality.mean), "std": list(modality.std)}
            return EncoderConfig(name, size, source.channels, options=statistics)
        return named(name, size, source.channels)

    def base_lr(self, device: str, needs: frozenset[str], encoder: EncoderConfig) -> float:
        """Few steps on a small convolutional network bear, and need, a larger step than long runs of large ones."""
        return 2.8e-3 if device == "cpu" and not needs & {"keep", "hide", "causal_pixels"} else 1e-3

    def training(
        self, source: ImageSource, modality: ImageModality, train: np.ndarray, held: np.ndarray, quiet: bool
    ) -> Training:
        return Training(source, train, held)

    def whole(self, source: ImageSource, modality: ImageModality, quiet: bool) -> Source:
        return source

    def reading(self, source: ImageSource, modality: ImageModality, index: np.ndarray, quiet: bool) -> Reading:
        return Reading(source, index)

    def raw(
        self, modality: ImageModality, train: tuple[ImageSource, np.ndarray], test: tuple[ImageSource, np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """The pixels."""
        return raw(modality, *train), raw(modality, *test)

    def audit(self, source: ImageSource, other: ImageSource | None, quiet: bool) -> Audited:
        found = audit(source, other)
        low, middle, high = found.height
        left, centre, right = found.width
        lines = [
            ("pictures", f"{found.samples} with {found.channels} channel{'s' * (found.channels > 1)}"),
            ("size", f"{low}-{high} px high (median {middle}), {left}-{right} px wide (median {centre}), as prepared"),
            ("classes", counted(found.classes, found.unlabelled, self.noun)),
            ("left out", f"{found.skipped_count}" + "".join(f"\n{n}: {r}" for n, r in found.skipped[:10])),
            ("duplicates", f"{found.exact_extra} exact copies, {found.near_count} pictures with a near duplicate"),
            *(("", " = ".join(group[:4])) for group in found.exact[:3]),
            *leaked(found),
        ]
        return Audited(found.to_json(), offers(found), lines)

    def facts(self, source: ImageSource) -> dict[str, Any]:
        sizes = source.sizes
        return {
            "channels": source.channels,
            "smallest_as_prepared": sizes.min(axis=0).tolist(),
            "largest_as_prepared": sizes.max(axis=0).tolist(),
        }

    def thumbnails(self, source: ImageSource, index: np.ndarray, side: int = 32) -> np.ndarray:
        """Small pictures uint8 [n, C, side, side], squeezed to a square."""
        modality = ImageModality(side, source.channels, (0.0,) * source.channels, (1.0,) * source.channels)
        parts = [modality.plain(batch) for batch in raw_batches(source, index, torch.device("cpu"))]
        return (torch.cat(parts) * 255).round().clamp(0, 255).to(torch.uint8).numpy()

    def grid(self, modality: ImageModality, shown: Shown, rows: int) -> np.ndarray:
        """A column for each view, normalisation undone; what is hidden has the mean colour."""
        mean, std = (torch.tensor(x)[:, None, None] for x in (modality.mean, modality.std))
        side = max(seen.read.shape[-1] for seen in shown.seen)
        white = ((1 - mean) / std).expand(-1, side, side)  # around views that are smaller than others
        columns = []
        for seen in shown.seen:
            columns.append(white.repeat(len(seen.read[:rows]), 1, 1, 1))
            columns[-1][:, :, : seen.read.shape[2], : seen.read.shape[3]] = seen.read[:rows]
        planes = 3 if modality.channels >= 3 else 1
        views, mean, std = torch.stack(columns, 1)[:, :, :planes], mean[:planes], std[:planes]
        if shrink := (side - 1) // _LARGEST:  # a report holds a picture of some megabytes at most
            views = F.avg_pool2d(views.flatten(0, 1), shrink + 1).unflatten(0, views.shape[:2])
        scale = max(1, _TILE // views.shape[-1])
        large = ((views * std + mean).clamp(0, 1) * 255).round().repeat_interleave(scale, 3).repeat_interleave(scale, 4)
        tiles = F.pad(large, (0, _GAP, 0, _GAP), value=255).to(torch.uint8).permute(2, 0, 3, 1, 4)
        return tiles.reshape(len(tiles), tiles.shape[1] * tiles.shape[2], -1).numpy()
