"""L*a*b* of sRGB against published values and loops."""

import numpy as np
import pytest
import torch

from selftaught.modality.image import lab
from selftaught.modality.image.lab import gamut, grey, lab_to_rgb, nearest, rgb_to_lab

KNOWN = {  # scikit-image's rgb2lab (D65, 2 degrees); Lindbloom's calculator agrees to the second decimal
    (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0): (53.2406, 80.0923, 67.2028),
    (0.0, 1.0, 0.0): (87.7351, -86.1830, 83.1797),
    (0.0, 0.0, 1.0): (32.2957, 79.1881, -107.8573),
    (0.5, 0.5, 0.5): (53.3890, 0.0, 0.0),
}


@pytest.mark.parametrize("rgb", KNOWN)
def test_known_colours(rgb: tuple[float, float, float]) -> None:
    found = rgb_to_lab(torch.tensor(rgb)[:, None, None]).flatten()
    torch.testing.assert_close(found, torch.tensor(KNOWN[rgb]), rtol=0, atol=0.01)


def test_there_and_back() -> None:
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x[0] *= 0.02  # where both curves are linear
    lab = rgb_to_lab(x)
    torch.testing.assert_close(lab_to_rgb(lab), x, rtol=0, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(x), lab)
        torch.testing.assert_close(lab_to_rgb(rgb_to_lab(x)), x, rtol=0, atol=2e-5)


def test_grey_has_the_lightness_and_no_colour() -> None:
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    light, ab = rgb_to_lab(grey(x)).split([1, 2], 1)
    torch.testing.assert_close(light, rgb_to_lab(x)[:, :1], rtol=0, atol=1e-3)
    assert ab.abs().max() < 0.01


def test_every_colour_lies_in_a_bin_of_the_gamut(monkeypatch: pytest.MonkeyPatch) -> None:
    bins = gamut(10)
    assert bins.shape == (261, 2)
    assert (bins % 10 == 0).all()
    x = torch.rand(3, 400, 400, generator=torch.Generator().manual_seed(0))
    cells = {tuple(c) for c in ((rgb_to_lab(x)[1:] / 10).round() * 10).flatten(1).T.unique(dim=0).tolist()}
    assert cells <= {tuple(b) for b in bins.tolist()}
    monkeypatch.setattr(lab, "_LEVELS", 97)
    assert torch.equal(gamut(10), bins)


def test_nearest_bins_share_a_colour_by_a_gaussian() -> None:
    bins, generator = gamut(10), torch.Generator().manual_seed(0)
    ab = torch.rand(2, 2, 3, 4, generator=generator) * 160 - 80
    index, weight = nearest(ab, bins, 5, 5.0)
    for i, r, c in np.ndindex(2, 3, 4):
        distance = (bins.double() - ab[i, :, r, c].double()).square().sum(1)
        order = distance.argsort()[:5]
        share = torch.exp(-distance[order] / 50)
        torch.testing.assert_close(distance[index[i, :, r, c]], distance[order], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(weight[i, :, r, c].double(), share / share.sum(), rtol=1e-3, atol=1e-5)
