"""Next sentence prediction and sentence order: against transformers' BertForPreTraining, and what each can tell."""

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.modality.text.mask import hide
from selftaught.modality.text.pairs import pairs
from selftaught.pretext.mlm import MLM
from selftaught.pretext.nsp import NSP
from selftaught.pretext.sop import SOP
from tests.contracts.conftest import batch_of, make


@pytest.fixture
def batch() -> Batch:
    return batch_of("mlm")


def theirs(task: MLM | NSP | SOP) -> BertForPreTraining:
    """The same weights in transformers' model; where a task has no head for hidden tokens, any."""
    model = BertForPreTraining(BertConfig(**task.encoder.model.config.to_dict())).eval()
    weights = {**model.state_dict(), **{f"bert.{n}": t for n, t in task.encoder.model.state_dict().items()}}
    order = task.order_head if isinstance(task, MLM) else task.head
    weights |= {"bert.pooler.dense.weight": order.dense.weight, "bert.pooler.dense.bias": order.dense.bias}
    weights |= {"cls.seq_relationship.weight": order.out.weight, "cls.seq_relationship.bias": order.out.bias}
    if isinstance(task, MLM):
        weights |= task.head.exported(task.encoder.embeddings)
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("order", ["nsp", "sop"])
def test_both_losses_together_are_those_of_bert(order: str, batch: Batch) -> None:
    task = make("mlm", order=order).eval()
    assert isinstance(task, MLM)
    pair = pairs(task.modality, batch, task.config.order)
    shown, chosen = hide(task.modality, pair.tokens, batch, task.config)
    step = task(batch)
    step.loss.backward()
    model = theirs(task)
    expected = model(
        input_ids=shown.ids,
        attention_mask=shown.valid.long(),
        token_type_ids=shown.segments,
        labels=torch.where(chosen, pair.tokens.ids, -100),
        next_sentence_label=torch.where(pair.known, pair.label, -100),
    ).loss
    torch.testing.assert_close(step.loss, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    mine, other = dict(task.encoder.model.named_parameters()), dict(model.bert.named_parameters())
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter.grad, other[name].grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["nsp", "sop"])
def test_each_alone_is_the_second_half_of_bert(name: str, batch: Batch) -> None:
    task = make(name).eval()
    assert isinstance(task, NSP | SOP)
    pair = pairs(task.modality, batch, name)  # type: ignore[arg-type]
    tokens = pair.tokens
    logits = theirs(task)(
        input_ids=tokens.ids, attention_mask=tokens.valid.long(), token_type_ids=tokens.segments
    ).seq_relationship_logits.double()
    right = logits[torch.arange(len(logits)), pair.label] - logits.logsumexp(1)
    expected = -right[pair.known].mean()
    torch.testing.assert_close(task(batch).loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_topics_answer_nsp_and_not_sop() -> None:
    """A bag of words tells strangers from neighbours; the order of two parts of one document it cannot tell: swapped, they
    hold the same words. What SOP was made for (Lan et al. 2020, section 3.1)."""
    task = make("sop")
    assert isinstance(task, SOP)
    batch = batch_of("sop")
    swapped = pairs(task.modality, batch, "sop")
    whole = task.modality.plain(batch)
    t = task.modality.tokenizer
    for row in swapped.label.nonzero()[:, 0].tolist():
        ids = swapped.tokens.ids[row]
        words = sorted(i for i in ids.tolist() if i not in (t.first, t.last, t.pad))
        beginning = whole.ids[row, 1 : 1 + len(words)].tolist()
        assert words == sorted(beginning)
    other = pairs(task.modality, batch_of("nsp"), "nsp")
    assert other.label.sum() > 0


def test_an_encoder_that_sees_only_what_lies_before_is_refused() -> None:
    from selftaught.encoders import EncoderConfig, build
    from selftaught.encoders.transformers_models import describe
    from tests.contracts.conftest import LENGTH, text_modality

    modality = text_modality()
    config = EncoderConfig(
        "gpt2_nano", LENGTH, 0, options=describe("gpt2_nano"), vocabulary=modality.tokenizer.vocabulary
    )
    with pytest.raises(UserError, match="pretext 'sop' needs an encoder that can bidirectional"):
        SOP(build(config), modality, SOP.Config())
