"""A whole step of masked language modelling, from token ids to updated weights, beside transformers' BertForMaskedLM.

    python benchmarks/mlm_step.py [--batch 64] [--repeats 7] [--json]

BERT of 4 layers, 256 wide, a vocabulary of 8 000, sequences of up to 128 tokens, half of a padded batch padding (lengths
uniform in 1 to 127 with their special tokens); the same initial weights, AdamW, 2 threads. Ours: the training loop's step.
Peer: BertForMaskedLM with sdpa attention and DataCollatorForLanguageModeling, the same fused AdamW. Tokens are real ones:
padding counts for neither side. Blocks of steps alternate; medians. bf16 rows run both sides under autocast.

The last row is the largest difference of the two losses on the same masked batches, dropout off: no speed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; it holds for both sides

import selftaught.encoders  # noqa: F401  (it goes before transformers, which imports torchvision)

# isort: split
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from _timing import Row, compare, main
from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.precision import fast_bf16
from selftaught.encoders.transformers_models import MaskedHead, describe
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.modality.text.mask import hide
from selftaught.modality.text.tokenizer import SPECIAL
from selftaught.pretext.mlm import MLM
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig

VOCABULARY, LENGTH = 8000, 128


def tokenizer_of(size: int) -> Tokenizer:
    """A tokenizer of `size` tokens; what they spell does not matter here."""
    import tokenizers

    words = [*SPECIAL, *(f"word{i}" for i in range(size - len(SPECIAL)))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    return Tokenizer(tokenizers.Tokenizer(model))


class Texts:
    """Endless batches of random token ids."""

    def __init__(self, batch: int) -> None:
        self.batch, self.step = batch, 0

    def next(self) -> dict[str, Tensor]:
        """ids, length and starts of a batch; the lengths are what they are in every batch, so that its work is."""
        g = torch.Generator().manual_seed(self.step)
        self.step += 1
        length = torch.linspace(1, LENGTH - 2, self.batch).round().long()[torch.randperm(self.batch, generator=g)]
        ids = torch.randint(len(SPECIAL), VOCABULARY, (self.batch, LENGTH - 2), generator=g)
        return {"ids": ids, "length": length, "starts": torch.ones_like(ids, dtype=torch.bool)}

    @property
    def tokens(self) -> int:
        """Real tokens of a batch, special ones included."""
        return int((self.next()["length"] + 2).sum())


class Ours:
    """Our training step."""

    def __init__(self, batch: int, precision: str) -> None:
        modality = TextModality(tokenizer_of(VOCABULARY), LENGTH)
        config = EncoderConfig("bert_mini", LENGTH, 0, options=describe("bert_mini"), vocabulary=VOCABULARY)
        torch.manual_seed(0)
        self.task = MLM(build(config), modality, MLM.Config())  # type: ignore[arg-type]
        optim = OptimConfig(lr=1e-4, weight_decay=0.01, clip_norm=1.0, warmup=0.0)
        self.trainer = Trainer(
            self.task, TrainConfig(steps=10**6, batch=batch, precision=precision, optim=optim), Ranks()
        )
        self.texts, self.batch = Texts(batch), batch

    def step(self) -> None:
        """One step on the next batch."""
        inputs = self.texts.next()
        self.trainer.train_step(Batch(inputs, torch.arange(self.batch), seed=0, step=self.texts.step))


class Peer:
    """BertForMaskedLM with its collator, trained in a plain loop."""

    def __init__(self, ours: Ours, precision: str) -> None:
        encoder, head = ours.task.encoder, ours.task.head
        self.model = BertForMaskedLM(BertConfig(**encoder.model.config.to_dict()))
        weights = {f"bert.{n}": t for n, t in encoder.model.state_dict().items()}
        weights |= {MaskedHead.NAMES[n]: t for n, t in head.state_dict().items()}
        weights |= {"cls.predictions.decoder.weight": encoder.embeddings, "cls.predictions.decoder.bias": head.bias}
        self.model.load_state_dict({n: t.detach().clone() for n, t in weights.items()})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
        fast = PreTrainedTokenizerFast(tokenizer_object=ours.task.modality.tokenizer.backend, **names)
        self.collate = DataCollatorForLanguageModeling(fast)
        self.texts, self.bf16 = Texts(ours.batch), precision == "bf16"
        self.model.train()

    def step(self) -> None:
        """One step on the next batch: collated (masked, padded), forward, backward, update."""
        x = self.texts.next()
        first, last = torch.tensor([2]), torch.tensor([3])
        rows = [torch.cat([first, ids[:n], last]) for ids, n in zip(x["ids"], x["length"].tolist())]
        batch = self.collate([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows])
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def difference(batch: int) -> float:
    """The largest difference of the losses on eight masked batches, the same weights, dropout off, float32."""
    ours = Ours(batch, "fp32")
    peer = Peer(ours, "fp32")
    task, model = ours.task.eval(), peer.model.eval()
    worst = 0.0
    for step in range(8):
        inputs = Batch(ours.texts.next(), torch.arange(batch), seed=0, step=step)
        with torch.no_grad():
            text = task.modality.plain(inputs)
            shown, chosen = hide(task.modality, text, inputs, task.config)
            labels = torch.where(chosen, text.ids, -100)
            theirs = model(input_ids=shown.ids, attention_mask=shown.valid.long(), labels=labels).loss
            worst = max(worst, abs(float(task(inputs).loss) - float(theirs)))
    return worst


def rows(args: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(args.threads)
    for precision in ["fp32", *(["bf16"] if fast_bf16() else [])]:
        ours = Ours(args.batch, precision)
        peer = Peer(ours, precision)
        yield compare(
            f"MLM step, {precision}", ours.step, peer.step, "real tokens/s", ours.texts.tokens, repeats=args.repeats
        )
    yield Row(name="difference of the losses", unit="", ours=difference(args.batch), peer=None, ratio=None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    main(rows(parser.parse_args()))
