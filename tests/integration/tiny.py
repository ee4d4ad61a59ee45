"""Tiny models of the Hub's kinds with random weights, data as its libraries collate them, and dense references."""

import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorWithPadding,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from tests.bridge import dense

WORDS = ["[PAD]", "[UNK]", "[CLS]", "good", "bad", "fine", "poor", "film", "plot", "a", "the", "was", "not", "very"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
N = 16


def bert(kind=AutoModelForSequenceClassification, labels=3):
    torch.manual_seed(0)
    return spread(kind.from_config(BertConfig(**SIZES, num_labels=labels)).eval())


def llama_reward():
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=1, num_labels=1)
    return spread(AutoModelForSequenceClassification.from_config(config).eval())


def spread(model):
    """Weights far enough from zero that outputs differ between samples."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def lora(model, *targets):
    """Adapters whose second factor is no longer zero, as after training."""
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=list(targets), lora_dropout=0.1)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn_like(p))
    return adapted.eval()


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")


def sentences(count=N, *, longest=7):
    """Sentences of several lengths."""
    picked = torch.Generator().manual_seed(1)
    drawn = torch.randint(3, len(WORDS), (count, longest), generator=picked)
    lengths = torch.randint(2, longest + 1, (count,), generator=picked)
    return [" ".join(WORDS[i] for i in row[:n]) for row, n in zip(drawn, lengths, strict=True)]


def encoded(labels=3, *, pad_to=None, batch=5):
    """A loader as the Trainer makes it: the tokenizer's rows, a batch padded to its longest, or all to one length."""
    of = tokenizer()
    rows = [{**of(text), "label": i % labels} for i, text in enumerate(sentences())]
    collator = DataCollatorWithPadding(of, padding="max_length" if pad_to else True, max_length=pad_to)
    return DataLoader(rows, batch_size=batch, collate_fn=collator)


def whole(loader):
    """Its batches as one, without the targets, and the targets."""
    batches = list(loader)
    keys = [key for key in batches[0] if key != "labels"]
    inputs = {key: torch.cat([batch[key] for batch in batches]) for key in keys}
    return inputs, torch.cat([batch["labels"] for batch in batches])


class OfIds(torch.nn.Module):
    """A model of keyword inputs as one of token ids, whose padding is the mask."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, attention_mask=(ids != 0).long()).logits


def exact_variance(model, ids, new, loss, prior):
    """Covariances of the outputs for ``new`` under the exact posterior over what may be trained, in float64."""
    model = OfIds(model)
    precision = dense.ggn(model, ids, loss)
    precision += prior * torch.eye(len(precision), dtype=torch.float64)
    rows = [dense.jacobian(dense.double(model), row[None]) for row in new]
    return torch.stack([row @ torch.linalg.solve(precision, row.T) for row in rows])
