"""Encoders of histories: padding changes nothing, nothing sees what comes later, and what comes next."""

import pytest
import torch

from selftaught.batch import Tokens
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.sequences import SIZES
from selftaught.errors import UserError

LENGTHS = (8, 3, 1, 5)
BOTH = pytest.mark.parametrize("name", ["sasrec_small", "bert4rec_small"])


def encoder(name: str, size: int = 8):  # type: ignore[no-untyped-def]
    return build(EncoderConfig(name, size, 0, options=SIZES[name], vocabulary=32)).eval()


def tokens(lengths: tuple[int, ...] = LENGTHS, width: int | None = None) -> Tokens:
    valid = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 31, valid.shape, generator=torch.Generator().manual_seed(0)).masked_fill(~valid, 0)
    return Tokens(ids, valid, valid)


@BOTH
def test_a_row_is_what_it_is_alone(name: str) -> None:
    model, x = encoder(name), tokens()
    together, next_ = model(x), model.next(x)
    assert not together.tokens[~x.valid].any()
    for row, n in enumerate(LENGTHS):
        alone = Tokens(x.ids[row : row + 1, :n], x.valid[row : row + 1, :n], x.valid[row : row + 1, :n])
        torch.testing.assert_close(model(alone).tokens[0], together.tokens[row, :n], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(alone).pooled[0], together.pooled[row], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.next(alone)[0], next_[row], rtol=1e-5, atol=1e-5)


def test_sasrec_never_sees_what_comes_later_and_bert4rec_does() -> None:
    x = tokens((6, 6))
    later = x._replace(ids=torch.cat([x.ids[:, :4], (x.ids[:, 4:] + 7) % 30 + 1], 1))
    model = encoder("sasrec_small")
    torch.testing.assert_close(model(x).tokens[:, :4], model(later).tokens[:, :4])
    both = encoder("bert4rec_small")
    assert (both(x).tokens[:, :4] - both(later).tokens[:, :4]).abs().max() > 1e-3


@BOTH
def test_the_last_event_has_the_last_position_however_long_the_row(name: str) -> None:
    model = encoder(name)
    model(tokens((3, 2))).pooled.pow(3).sum().backward()  # a sum behind LayerNorm has no gradient
    moved = model.model.positions.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [False] * 5 + [True] * 3


@BOTH
def test_what_comes_next(name: str) -> None:
    model = encoder(name)
    for x in (tokens(), tokens((8, 8)), tokens((0, 2)), tokens((0, 0), width=1)):
        scores = model.scores(model.next(x))
        assert scores.shape == (len(x.ids), 32)
        assert torch.isinf(scores[:, [0, 31]]).all()
        assert torch.isfinite(scores[:, 1:31]).all()


def test_bert4rec_asks_by_a_mask_behind_the_history() -> None:
    model, x = encoder("bert4rec_small"), tokens((3,))
    masked = Tokens(
        torch.cat([x.ids, torch.tensor([[31]])], 1), torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4).bool()
    )
    torch.testing.assert_close(model.next(x), model(masked).tokens[:, 3])
    full = tokens((8,))  # no room: the oldest event goes
    later = Tokens(full.ids[:, 1:], full.valid[:, 1:], full.valid[:, 1:])
    torch.testing.assert_close(model.next(full), model.next(later))


@BOTH
def test_bad_requests_and_layers(name: str) -> None:
    model = encoder(name)
    assert {model.layer_of(n) for n, _ in model.named_parameters()} == {0, 1, 2, 3}
    with pytest.raises(UserError, match="at most 8 events"):
        model(tokens((9,)))
    with pytest.raises(UserError, match="divides 64"):
        build(EncoderConfig(name, 8, 0, options={**SIZES[name], "heads": 5}, vocabulary=32))
