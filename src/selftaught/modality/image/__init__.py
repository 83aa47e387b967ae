"""Pictures: uint8 canvases to normalised float views, a whole batch at a time, on the batch's device."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.image import colour
from selftaught.modality.image.resample import Blur, Crops
from selftaught.modality.image.views import DRAWS, Parameters, View, sample

_BLOCK_FLOATS, _BLOCK_VIEWS = 1 << 18, 3  # what stays in cache, but not so few views that calls cost more than work

__all__ = ["ImageModality", "Parameters", "View", "apply", "sample"]


def apply(
    pixels: UInt8[Tensor, "b c h w"],
    size: Int[Tensor, "b 2"],
    view: View,
    p: Parameters,
    side: int,
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Float[Tensor, "b c s s"]:
    """The views with the given parameters: crop, flip, colour jitter, greyscale, blur, solarise; then normalised.

    normalise: mean and std per channel; None leaves the views in [0, 1].

    On a CPU rows are taken in blocks that stay in cache from the crop to the normalisation. For exact colours they are
    taken in the order of their colour jitter, so that equal operations lie side by side.
    """
    b, c = pixels.shape[:2]
    out = torch.empty(b, c, side, side, device=pixels.device)
    block = max(_BLOCK_VIEWS, _BLOCK_FLOATS // (c * side**2)) if pixels.device.type == "cpu" else b
    scales = list(zip(*(normalise or ((0.0,) * c, (1.0,) * c))))
    units: colour.Units = (tuple(-mean / std for mean, std in scales), tuple((1 - mean) / std for mean, std in scales))
    scratch = out.new_empty(c * min(b, block) * side**2)  # one for all blocks: fresh memory is slower than all the rest
    colours = view.jitter > 0 or view.greyscale > 0
    crops = Crops(pixels, size, p, side)
    blur = Blur(p.sigma, view.blur_sigma[1], side) if view.blur else None

    def finish(views: Float[Tensor, "c n s s"], rows: slice | Tensor) -> None:
        if blur is not None:
            blur.on(views, rows)
        if view.solarise:
            colour.solarise_(views, p.solarise[rows], units)

    if colours and (view.exact_colour or c != 3):
        for rows in p.order.argsort(stable=True).split(block):
            views, q = scratch[: c * len(rows) * side**2].view(c, len(rows), side, side), p[rows]
            crops.into(views, rows)
            views.mul_(1 / 255)
            colour.jitter_(views, view, q.order, q.factors)
            colour.greyscale_(views, q.greyscale)
            colour.normalise_(views, 1.0, units)
            finish(views, rows)
            for channel in range(c):
                out[:, channel].index_copy_(0, rows, views[channel])
        return out
    twist = colour.Twist(p.order, p.factors, p.greyscale, units) if colours else None
    for start in range(0, b, block):
        piece = slice(start, start + block)
        views = out[piece].transpose(0, 1)
        if twist is not None:
            crop = scratch[: views.numel()].view(views.shape)
            crops.into(crop, piece)
            twist.into(out[piece], crop, piece)
        else:
            crops.into(views, piece)
            colour.normalise_(views, 255.0, units)
        finish(views, piece)
    return out


class ImageModality(Modality):
    """Augmentation and normalisation of pictures.

    size: side of a view in pixels. channels: of the pictures. mean, std: per channel, in units of [0, 1], as the
    encoder expects them: out = (x - mean) / std.

    Views are contiguous: a channels_last network is as fast on them, because its first convolution converts them.

    Raises UserError where mean or std do not fit the channels.
    """

    name = "image"

    def __init__(self, size: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        for label, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UserError(f"{label} has {len(values)} values, but the pictures have {channels} channels")
        if min(std) <= 0:
            raise UserError(f"std is {tuple(std)}, but each value must be positive")
        if size < 1:
            raise UserError(f"size is {size}, but must be at least 1 pixel")
        self.size = size
        self.channels = channels
        self.mean = tuple(mean)
        self.std = tuple(std)

    def contrastive_view(self) -> View:
        """Strong colour and crop augmentation: what two views of a picture are made with."""
        return View.simclr(self.size)

    def paired_views(self) -> tuple[View, View]:
        """BYOL's: the first is always blurred, the second sometimes solarised."""
        return View.byol(self.size, second=False), View.byol(self.size, second=True)

    def light_view(self) -> View:
        """Crop and flip only: for masked prediction and fine-tuning."""
        return View.crop_flip(self.size)

    def view(self, batch: Batch, view: View, stream: int) -> Float[Tensor, "b c s s"]:
        """One random view of each picture, normalised. Different streams give independent views.

        A sample's view is a function of (seed, step, stream, sample): on one machine with one thread count it has the
        same bits in any batch, at any position, beside pictures of any size (on a GPU: up to rounding).
        """
        return self._made(batch, view, batch.uniform(stream, DRAWS))

    def plain(self, batch: Batch) -> Float[Tensor, "b c s s"]:
        """The deterministic view of evaluation, normalised: short side to `size` (antialiased), then the centre.

        A picture that is exactly size x size is untouched.
        """
        return self._made(batch, View.plain(), torch.zeros(len(batch), DRAWS, device=batch.index.device))

    def join(self, views: Sequence[Float[Tensor, "b c s s"]]) -> Float[Tensor, "n c s s"]:
        """Views one after the other."""
        return torch.cat(list(views))

    def inputs(self, samples: Tensor) -> dict[str, Tensor]:
        """A batch's inputs from pictures of one size, uint8 [B, C, H, W]; UserError for anything else."""
        if samples.dtype != torch.uint8 or samples.ndim != 4:
            raise UserError(
                f"pictures are {str(samples.dtype).removeprefix('torch.')} {list(samples.shape)}, and uint8 [B, C, H, W] "
                "of 0 to 255 is read; of values in [0, 1] give (255 * x).round().to(torch.uint8)"
            )
        size = torch.tensor(samples.shape[2:]).expand(len(samples), 2)
        return {"pixels": samples, "size": size}

    def to_json(self) -> dict[str, object]:
        """What `from_json` takes, and what an encoder bundle records as its preprocessing."""
        return {"size": self.size, "channels": self.channels, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: dict[str, object]) -> "ImageModality":
        """The modality that `to_json` described. Raises UserError for missing, unknown or ill-typed values."""
        match values:
            case {"size": int(size), "channels": int(channels), "mean": list(mean), "std": list(std), **rest} if (
                not rest
            ):
                return cls(size, channels, tuple(map(float, mean)), tuple(map(float, std)))
        raise UserError(f"image preprocessing is {values}, but must hold size, channels, mean and std and no more")

    def _made(self, batch: Batch, view: View, u: Tensor) -> Tensor:
        pixels, size = batch.inputs["pixels"], batch.inputs["size"]
        if pixels.shape[1] != self.channels:
            raise UserError(f"pictures have {pixels.shape[1]} channels, but the modality was made for {self.channels}")
        side = view.size or self.size
        p = sample(view, u, size, side)
        with torch.autocast(pixels.device.type, enabled=False):  # the network may train in bf16; pictures keep 8 bits
            return apply(pixels, size, view, p, side, (self.mean, self.std))
