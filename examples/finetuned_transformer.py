"""A transformer with LoRA adapters, and a posterior over adapters and head alone. Offline, under a minute.

Sentences are made here: a review of a few words, whose verdict the last word of praise or blame decides.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pictures
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, BertConfig, DataCollatorWithPadding
from transformers import PreTrainedTokenizerFast as TokenizerFast

from bridge import Laplace

PRAISE, BLAME = ["good", "great", "fine", "lovely"], ["bad", "poor", "dull", "awful"]
OTHERS = ["the", "a", "film", "plot", "cast", "was", "and", "then", "music", "end"]
UNKNOWN = "[UNK]"  # what the model has never been trained on


def review(rng: random.Random, others: list[str]) -> tuple[str, int]:
    """Words, and whether they end in praise; one verdict in ten is wrong."""
    words = rng.choices(others, k=rng.randint(3, 10))
    for _ in range(rng.randint(1, 2)):
        words.insert(rng.randrange(len(words)), rng.choice(PRAISE + BLAME))
    verdict = next(word in PRAISE for word in reversed(words) if word in PRAISE + BLAME)
    return " ".join(words), int(verdict != (rng.random() < 0.1))


def tokenizer() -> TokenizerFast:
    vocabulary = ["[PAD]", UNKNOWN, *PRAISE, *BLAME, *OTHERS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token=UNKNOWN)


def loader(
    of: TokenizerFast, count: int, seed: int, others: list[str] = OTHERS, *, shuffle: bool = False
) -> DataLoader:
    """Batches as the Trainer makes them, each padded to its longest sentence."""
    rng = random.Random(seed)
    rows = [{**of(text), "label": label} for text, label in (review(rng, others) for _ in range(count))]
    return DataLoader(rows, batch_size=32, shuffle=shuffle, collate_fn=DataCollatorWithPadding(of))


def finetuned(of: TokenizerFast, train: DataLoader, epochs: int) -> torch.nn.Module:
    config = BertConfig(
        vocab_size=len(of),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        num_labels=2,
        pad_token_id=of.pad_token_id,
    )
    adapters = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=16, target_modules=["query", "value"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, of a name that transformers is about to drop
        model = get_peft_model(AutoModelForSequenceClassification.from_config(config), adapters)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-2)
    model.train()
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return model.eval()


def scores(predict, data: DataLoader) -> tuple[float, float, float]:
    """Accuracy, negative log-likelihood, and mean entropy of the predictions."""
    probabilities, targets = zip(*((predict(batch), batch["labels"]) for batch in data), strict=True)
    p, y = torch.cat(probabilities), torch.cat(targets)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1).mean()
    return float((p.argmax(1) == y).float().mean()), float(F.nll_loss(p.log(), y)), float(entropy)


def main(sentences: int = 256, epochs: int = 30, folder: Path = pictures.RESULTS) -> None:
    torch.manual_seed(0)
    of = tokenizer()
    train = loader(of, sentences, seed=0, shuffle=True)
    model = finetuned(of, train, epochs)

    la = Laplace(model, progress=False)  # over what requires a gradient: adapters and head
    la.fit(train)
    la.optimize_prior_precision(val_loader=loader(of, 128, seed=1))

    @torch.no_grad()
    def network(batch) -> torch.Tensor:
        return model(**batch).logits.softmax(1)

    total = sum(p.numel() for p in model.parameters())
    print(f"{la.order.size:,} of {total:,} weights in the posterior, prior precision {la.prior_precision:.3g}")
    print(f"{'test sentences':18}{'method':10}{'accuracy':>9}{'NLL':>8}{'entropy':>9}")
    found: dict[str, dict[str, float]] = {}
    foreign = [*OTHERS, *["zyx", "wvu"] * 10]
    for name, others in (("of known words", OTHERS), ("of foreign words", foreign)):
        data = loader(of, 512, seed=2, others=others)
        for method, predict in (("network", network), ("Laplace", la)):
            row = scores(predict, data)
            found.setdefault(name, {})[method] = row[1]
            print("{:18}{:10}{:9.3f}{:8.3f}{:9.3f}".format(name, method, *row))
    pictures.bars(found, "negative log-likelihood (nats)", folder, "finetuned_transformer")
    mistake(la, of)


def mistake(la: Laplace, of: TokenizerFast) -> None:
    """A name that the model does not know, but that looks like one of its own."""
    batch = of(["a good film"], return_tensors="pt")
    try:
        la({"input_id": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    except (TypeError, ValueError) as error:
        print(f"\nA misspelt input:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
