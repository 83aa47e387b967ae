"""TSDAE against transformers' BERT as a decoder with cross-attention, its layers tied to the encoder's."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from selftaught.errors import UserError
from selftaught.modality.text import TextView
from selftaught.pretext.tsdae import TSDAE
from tests.contracts.conftest import batch_of, make


def theirs(task: TSDAE) -> BertLMHeadModel:
    """A decoder of transformers with the encoder's weights; its queries and keys to the one vector are any."""
    given = {**task.encoder.model.config.to_dict(), "is_decoder": True, "add_cross_attention": True}
    model = BertLMHeadModel(BertConfig(**given)).eval()
    weights = {**model.state_dict(), **{f"bert.{n}": t for n, t in task.encoder.model.state_dict().items()}}
    for i in range(task.encoder.model.config.num_hidden_layers):
        layer = f"bert.encoder.layer.{i}.crossattention"
        for their, mine in (
            ("self.value", task.decoder.value),
            ("output.dense", task.decoder.out),
            ("output.LayerNorm", task.decoder.norm),
        ):
            weights |= {f"{layer}.{their}.{n}": t for n, t in mine[i].state_dict().items()}
    model.load_state_dict(weights | task.head.exported(task.encoder.embeddings))
    return model


def test_loss_is_that_of_a_tied_decoder_of_transformers() -> None:
    task, batch = make("tsdae").eval(), batch_of("tsdae")
    assert isinstance(task, TSDAE)
    text = task.modality.plain(batch)
    left = task.modality.view(batch, TextView(drop=0.6), stream=1)
    with torch.no_grad():
        logits = theirs(task)(
            input_ids=text.ids,
            attention_mask=text.valid.long(),
            encoder_hidden_states=task.encoder(left).pooled[:, None],
            use_cache=False,
        ).logits.double()
        loss = task(batch).loss
    total, n = 0.0, 0
    for row, column in text.valid[:, 1:].nonzero().tolist():
        total -= logits[row, column].log_softmax(0)[text.ids[row, column + 1]].item()
        n += 1
    assert loss.item() == pytest.approx(total / n, rel=1e-5)


def test_a_token_is_written_from_the_vector_and_what_lies_before_it() -> None:
    task, batch = make("tsdae").eval(), batch_of("tsdae")
    assert isinstance(task, TSDAE)
    text = task.modality.plain(batch)
    vector = torch.randn(len(batch), task.encoder.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        written = task.decoder(task.encoder, text, vector)
        ids = text.ids.clone()
        ids[:, 6:] = torch.where(text.valid[:, 6:], 7, ids[:, 6:])
        later = task.decoder(task.encoder, text._replace(ids=ids), vector)
        other = task.decoder(task.encoder, text, vector.flip(0))
    torch.testing.assert_close(written[:, :6], later[:, :6], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(written[:, 6:], later[:, 6:])
    assert not torch.allclose(written[:, 0], other[:, 0])


def test_every_gradient_of_the_encoder_is_of_both_its_uses() -> None:
    """Tied: the layers learn as encoder and as decoder. With the vector cut off they still learn, and otherwise."""
    task, batch = make("tsdae").eval(), batch_of("tsdae")
    assert isinstance(task, TSDAE)
    task(batch).loss.backward()
    both = {n: p.grad.clone() for n, p in task.encoder.named_parameters()}
    task.zero_grad()
    text = task.modality.plain(batch)
    with torch.no_grad():
        vector = task.encoder(task.modality.view(batch, TextView(drop=0.6), stream=1)).pooled
    written = task.decoder(task.encoder, text, vector)[:, :-1][text.valid[:, 1:]]
    loss = torch.nn.functional.cross_entropy(
        task.head(written, task.encoder.embeddings), text.ids[:, 1:][text.valid[:, 1:]]
    )
    loss.backward()
    name = "model.encoder.layer.0.attention.self.value.weight"
    alone = dict(task.encoder.named_parameters())[name].grad
    assert alone is not None
    assert alone.abs().max() > 0
    assert not torch.allclose(both[name], alone)


def test_bad_share() -> None:
    with pytest.raises(UserError, match=r"pretext.drop is 1, but must be a share from 0 to below 1"):
        make("tsdae", drop=1.0)
