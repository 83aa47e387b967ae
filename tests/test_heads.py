import pytest
import torch
from torch import nn

from selftaught.errors import UserError
from selftaught.heads import Discriminator, Norm, PixelDecoder, ProjectionHead


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("none", None)])
def test_layers_and_normalisation(layers: int, norm: Norm, kind: type[nn.Module] | None) -> None:
    head = ProjectionHead(12, 20, 8, layers=layers, norm=norm)
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (12 if i == 0 else 20, 8 if i == layers - 1 else 20) for i in range(layers)
    ]
    assert sum(kind is not None and isinstance(m, kind) for m in head) == (0 if kind is None else layers - 1)
    assert all((m.bias is None) == (norm != "none") for m in linear[:-1])
    assert linear[-1].bias is not None
    assert head(torch.randn(5, 12)).shape == (5, head.out) == (5, 8)


def test_hidden_layers_are_rectified_and_the_last_is_not() -> None:
    head = ProjectionHead(4, 16, 8, norm="none")
    out = head(torch.randn(64, 4))
    assert (out < 0).any()
    x = torch.randn(3, 4)
    hidden, last = head[0], head[-1]
    torch.testing.assert_close(head(x), last(hidden(x).relu()))


def test_last_norm_standardises_each_output() -> None:
    head = ProjectionHead(6, 10, 4, last_norm=True)
    out = head(3 * torch.randn(512, 6) + 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(4), atol=1e-2, rtol=0)
    assert not list(head[-1].parameters())
    assert head[-2].bias is None


def test_the_last_bias_may_be_left_out() -> None:
    assert [ProjectionHead(6, 10, 4, last_bias=bias)[-1].bias is None for bias in (True, False)] == [False, True]


def test_bad_requests_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"0 layers.*use layers 1"):
        ProjectionHead(4, 4, 4, layers=0)
    with pytest.raises(UserError, match=r"last_norm.*use norm"):
        ProjectionHead(4, 4, 4, norm="none", last_norm=True)


@pytest.mark.parametrize(("rows", "side"), [(4, 16), (8, 8), (4, 7), (7, 56), (8, 4)])
def test_a_decoder_keeps_places(rows: int, side: int) -> None:
    """Tokens of one half of the grid reach that half of the map alone, but for the pixels along the border."""
    torch.manual_seed(0)
    decoder = PixelDecoder(12, 5, (rows, rows), side)
    decoder.layers = nn.Sequential(
        *(m for m in decoder.layers if not isinstance(m, nn.GroupNorm))
    )  # it mixes all places
    tokens = torch.randn(2, rows * rows, 12)
    other = tokens.clone()
    other[:, rows * rows // 2 :] = 0
    one, two = decoder(tokens), decoder(other)
    assert one.shape == (2, 5, side, side)
    differ = (one != two).any(1)
    assert not differ[:, : side // 4].any()
    assert differ[:, 3 * side // 4 :].any(2).all()


def test_a_decoder_needs_a_square() -> None:
    with pytest.raises(UserError, match=r"needs a square grid of tokens, not \(0, 0\); use a resnet"):
        PixelDecoder(12, 5, (0, 0), 16)


@pytest.mark.parametrize("side", [8, 16, 28, 96])
def test_a_discriminator_judges_each_picture_alone(side: int) -> None:
    judge = Discriminator(3, side)
    pictures = torch.randn(3, 3, side, side)
    found = judge(pictures)
    assert found.shape == (3,)
    torch.testing.assert_close(found[:1], judge(pictures[:1]), rtol=1e-4, atol=1e-5)
