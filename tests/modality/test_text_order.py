"""Pairs of texts, row by row against BERT's and ALBERT's rules written out, and their statistics."""

import dataclasses
import unicodedata

import pytest
import torch
from tests.modality.corpus import CHINESE, english, texts

from selftaught.batch import Batch
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.modality.text.pairs import Pairs, cuts, pairs
from selftaught.modality.text.tokenizer import KINDS

SIZE = 32


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram", "chinese"])
def modality(request: pytest.FixtureRequest) -> TextModality:
    kind = "wordpiece" if request.param == "chinese" else request.param
    return TextModality(Tokenizer.train(texts(), kind, 1000), SIZE)


def batch_of(modality: TextModality, samples: list[str], step: int = 0) -> Batch:
    return Batch(modality.inputs(samples), torch.arange(len(samples)), seed=1, step=step)


def parts(modality: TextModality, found: Pairs, row: int) -> tuple[list[int], list[int]]:
    """The two texts of a row, after a look at what frames them."""
    t, tokens = modality.tokenizer, found.tokens
    n = int(tokens.valid[row].sum())
    ids = tokens.ids[row].tolist()
    assert tokens.segments is not None
    segment = tokens.segments[row].tolist()
    assert n <= SIZE
    assert tokens.valid[row].tolist() == [i < n for i in range(len(ids))]
    assert ids[0] == t.first
    assert ids[n - 1] == t.last
    assert all(i == t.pad for i in ids[n:])
    middle = ids.index(t.last)
    assert segment == [int(middle < i < n) for i in range(len(ids))]
    assert not modality.maskable(tokens)[row, [0, middle, n - 1]].any()
    return ids[1:middle], ids[middle + 1 : n - 1]


def test_cuts_lie_behind_sentences_where_there_are_any(modality: TextModality) -> None:
    samples = ["He paid 3.5 euros. It was cheap! Was it?", "no sentence ends here", "好吃。很好！下次再来", "word"]
    inputs = modality.inputs(samples)
    possible = cuts(modality, inputs["ids"], inputs["starts"], inputs["length"])
    decode = modality.tokenizer.decode
    halves = [
        [
            decode(inputs["ids"][row, :at].tolist()).replace(" ", "").lower()
            for at in possible[row].nonzero()[:, 0].tolist()
        ]
        for row in range(4)
    ]
    assert halves[0] == ["hepaid3.5euros.", "hepaid3.5euros.itwascheap!"]
    assert halves[1] == ["no", "nosentence", "nosentenceends"]
    if len(modality.inputs(["。"])["ids"][0]) == 1:
        assert halves[2] == ["好吃。", "好吃。很好！"]
    assert halves[3] == [] or not possible[3, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_closing_quotes_and_further_marks_belong_to_the_sentence_they_end(kind: str) -> None:
    samples = [
        'He left." She stayed... Now?! Yes',
        "他说：“好吃。”然后走了……真的！！下次再来",
        'He left. "No," she said',
    ]
    t = Tokenizer.train([*texts(), *samples * (30 if kind == "bpe" else 1)], kind, 1000)
    inputs = TextModality(t, 64).inputs(samples)
    possible = cuts(TextModality(t, 64), inputs["ids"], inputs["starts"], inputs["length"])
    sentences = (('He left."', "She stayed...", "Now?!"), ("他说：“好吃。”", "然后走了……", "真的！！"), ("He left.",))
    if t.spaces == "forgotten":  # what stands right behind a mark closes: the space that tells is not there
        sentences = (*sentences[:2], ('He left."',))
    for row, expected in enumerate(sentences):
        ends = [t.decode(inputs["ids"][row, :at].tolist()) for at in possible[row].nonzero()[:, 0].tolist()]
        wanted = ["".join(expected[: n + 1]) for n in range(len(expected))]
        assert [_bare(text) for text in ends] == [_bare(text) for text in wanted]


def _bare(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace(" ", "").lower()


def test_sop_swaps_half_of_the_consecutive_parts(modality: TextModality) -> None:
    samples = [text for text, _ in english()][:100] + list(CHINESE)
    swapped = known = 0
    for step in range(6):
        batch = batch_of(modality, samples, step)
        found = pairs(modality, batch, "sop")
        for row in range(len(samples)):
            one, two = parts(modality, found, row)
            if not found.known[row]:
                assert two == []
                assert found.label[row] == 0
                continue
            ids, both = batch.inputs["ids"][row].tolist(), two + one if found.label[row] else one + two
            assert any(ids[at : at + len(both)] == both for at in range(len(ids)))
            assert one
            assert two
        swapped += int(found.label.sum())
        known += int(found.known.sum())
    assert known > 300
    assert abs(swapped / known - 0.5) < 4 * (0.25 / known) ** 0.5


def test_half_a_sentence_at_an_edge_does_not_give_the_order_away() -> None:
    """A piece cut by its length loses the halves of sentences at its edges; where the document begins or ends, nothing."""
    modality = TextModality(Tokenizer.train(texts(), "wordpiece", 1000), SIZE)
    inputs = modality.inputs(["of it. One is here. Two is there. Three is"] * 4)
    edges = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    texts_of = []
    for step in range(8):
        batch = Batch({**inputs, "edges": edges}, torch.arange(4), seed=1, step=step)
        found = pairs(modality, batch, "sop")
        for row in range(4):
            if found.tokens.valid[row].sum() < int(inputs["length"][row]) // 2:
                continue  # one of the tenth that is shortened
            one, two = parts(modality, found, row)
            both = two + one if found.label[row] else one + two
            texts_of.append((row, modality.tokenizer.decode(both).replace(" ", "").lower()))
    middle = "oneishere.twoisthere."
    assert (0, middle) in texts_of
    assert {text for row, text in texts_of if row == 3} >= {f"ofit.{middle}threeis"}
    assert {text for row, text in texts_of if row == 1} >= {f"ofit.{middle}"}
    assert {text for row, text in texts_of if row == 2} >= {f"{middle}threeis"}
    one_end = modality.inputs(["is here. Two is"])
    cut = Batch({**one_end, "edges": torch.zeros(1, 2, dtype=torch.bool)}, torch.arange(1), seed=1, step=0)
    assert not pairs(modality, cut, "sop").known[0]  # of two halves of sentences there is no pair
    assert pairs(modality, cut, "nsp").known[0]


def test_nsp_takes_half_of_the_second_parts_from_other_documents(modality: TextModality) -> None:
    samples = [text for text, _ in english()][:101]  # odd: the last has no partner
    other = able = 0
    for step in range(6):
        batch = batch_of(modality, samples, step)
        found = pairs(modality, batch, "nsp")
        ids = batch.inputs["ids"]
        text = ["".join(f"<{i}>" for i in row) for row in ids.tolist()]
        for row in range(len(samples)):
            one, two = parts(modality, found, row)
            source = row ^ 1 if found.label[row] else row
            assert "".join(f"<{i}>" for i in one) in text[row]
            assert "".join(f"<{i}>" for i in two) in text[source]
            if not found.label[row]:  # unchanged: it fits already
                assert ids[row, : len(one) + len(two)].tolist() == one + two
        assert torch.equal(found.label[:-1:2], found.label[1::2])
        assert found.label[-1] == 0
        both = found.known[:-1:2] & found.known[1::2]
        other += int(found.label[:-1:2].sum())
        able += int(both.sum())
    assert abs(other / able - 0.5) < 4 * (0.25 / able) ** 0.5


def test_pieces_of_one_document_are_never_called_strangers(modality: TextModality) -> None:
    batch = batch_of(modality, [text for text, _ in english()][:64])
    batch = dataclasses.replace(batch, inputs={**batch.inputs, "document": torch.zeros(64, dtype=torch.int64)})
    assert pairs(modality, batch, "nsp").label.sum() == 0


def test_lengths_do_not_tell_strangers(modality: TextModality) -> None:
    """The commonest answer for each length of a pair, learnt on half of the steps, is right on the others as often as any."""
    samples = [text for text, _ in english()][:100]
    answers = torch.zeros(2, SIZE + 1, 2)
    for step in range(20):
        found = pairs(modality, batch_of(modality, samples, step), "nsp")
        assert found.tokens.segments is not None
        total, second = found.tokens.valid.sum(1)[found.known], found.tokens.segments.sum(1)
        both = found.known[::2] & found.known[1::2]
        assert torch.equal(second[::2][both], second[1::2][both])
        answers[step % 2].index_put_((total, found.label[found.known]), torch.ones(len(total)), accumulate=True)
    learnt, tested = answers
    right = tested.gather(1, learnt.argmax(1, keepdim=True)).sum() / tested.sum()
    assert right < 0.55


@pytest.mark.parametrize("kind", KINDS)
def test_the_space_before_the_first_word_does_not_tell_the_order(kind: str) -> None:
    """A document begins without one, as no later sentence does."""
    t = Tokenizer.train(texts(), kind, 1000)
    modality, before = TextModality(t, 64), t.decode([t.unknown])
    samples = ["One is here. Two is there. Three is gone.", "今天的外卖很好吃。送餐也很快！下次还会再来。"]
    if kind != "char":  # there each space is a word
        samples.append("no sentence ends here")
    if kind != "unigram":  # there the end of a line may be one token with the mark before it
        samples.append("One.\nTwo is there.\nThree it is.")
    spaces = [(set[str](), set[str]()) for _ in samples]
    for step in range(30):
        batch = batch_of(modality, samples, step)
        found = pairs(modality, batch, "sop")
        for row in found.known.nonzero()[:, 0].tolist():
            if found.tokens.valid[row].sum() < int(batch.inputs["length"][row]) // 2:
                continue  # one of the tenth that is shortened
            word = t.decode([t.unknown, int(found.tokens.ids[row, 1])]).removeprefix(before)
            spaces[row][int(found.label[row])].add(word[: len(word) - len(word.lstrip())])
    for one, two in spaces:
        assert len(one) == 1
        assert one == two


def test_a_tenth_is_shortened_and_a_row_depends_on_its_own_key(modality: TextModality) -> None:
    samples = ["word " * 40] * 2000
    batch = batch_of(modality, samples)
    length = pairs(modality, batch, "sop").tokens.valid.sum(1)
    full = (length == length.max()).float().mean().item()  # where the first word is left out it is not SIZE
    assert abs(full - 0.9) < 0.03
    assert length.min() >= 4  # a part of one word cannot be cut: it stays alone
    alone = Batch({k: v[7:8] for k, v in batch.inputs.items()}, batch.index[7:8], seed=1, step=0)
    one, all_of_them = pairs(modality, alone, "sop"), pairs(modality, batch, "sop")
    width = one.tokens.ids.shape[1]
    assert torch.equal(one.tokens.ids[0], all_of_them.tokens.ids[7, :width])
    assert one.label[0] == all_of_them.label[7]


def test_texts_without_tokens_have_no_pair(modality: TextModality) -> None:
    for samples in (["", ""], ["", "One. Two."]):
        for order in ("nsp", "sop"):
            found = pairs(modality, batch_of(modality, samples), order)
            assert not found.known[0]
            assert found.tokens.valid[0].sum() == 2
