"""Models and collators of transformers, as they come."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from bridge import Laplace
from jax_core import Categorical
from tests.integration.tiny import N, bert, encoded, exact_variance, sentences, tokenizer, whole

pytestmark = pytest.mark.in_turns


def test_sequence_classification_takes_what_the_collator_makes():
    model, loader = bert(AutoModelForSequenceClassification), encoded()
    la = Laplace(model, subset_of_weights="last_layer", hessian_structure="full", progress=False).fit(loader)
    assert la.subset.name == "classifier"
    assert len({batch["input_ids"].shape[1] for batch in loader}) > 1
    inputs, targets = whole(encoded(pad_to=8))
    for number, batch in enumerate(loader):  # a BatchEncoding, labels and all
        torch.testing.assert_close(la(batch), la(inputs)[5 * number :][:5], rtol=1e-4, atol=1e-5)
    for name, p in model.named_parameters():
        p.requires_grad_("classifier" in name)

    def loss(outputs, i):
        return F.cross_entropy(outputs, targets[i : i + 1], reduction="sum")

    exact = exact_variance(model, inputs["input_ids"], inputs["input_ids"][:3], loss, 1.0)
    few = {key: value[:3] for key, value in inputs.items()}
    torch.testing.assert_close(la.predictive_distribution(few)[1].double(), exact, rtol=1e-3, atol=1e-6)


def test_a_prediction_needs_no_labels():
    la = Laplace(bert(), subset_of_weights="last_layer", progress=False).fit(encoded())
    given = tokenizer()(sentences()[:3], padding=True, return_tensors="pt")
    batch = next(iter(encoded()))
    torch.testing.assert_close(la(given), la(batch)[:3], rtol=1e-4, atol=1e-5)


def tagged(pad_to=None):
    of = tokenizer()
    rows = [{**of(text), "labels": [i % 3 for i in of(text)["input_ids"]]} for text in sentences()]
    collator = DataCollatorForTokenClassification(of, padding="max_length" if pad_to else True, max_length=pad_to)
    return DataLoader(rows, batch_size=5, collate_fn=collator)


def test_token_classification_does_not_count_padding():
    model, loader = bert(AutoModelForTokenClassification), tagged()
    how = {"subset_of_weights": "last_layer", "hessian_structure": "full", "progress": False}
    for padded in (loader, tagged(pad_to=8)):
        with pytest.raises(ValueError, match=r"likelihood=jax_core\.Categorical\(ignore_index=-100\)"):
            Laplace(model, **how).fit(padded)
    la = Laplace(model, Categorical(ignore_index=-100), **how).fit(loader)
    inputs, targets = whole(tagged(pad_to=8))
    assert la(inputs).shape == (N, 8, 3)
    first = next(iter(loader))
    torch.testing.assert_close(la(first), la(inputs)[:5, : first["input_ids"].shape[1]], rtol=1e-4, atol=1e-5)
    for name, p in model.named_parameters():
        p.requires_grad_("classifier" in name)

    def loss(outputs, i):
        return F.cross_entropy(outputs[0], targets[i], ignore_index=-100, reduction="sum")

    exact = exact_variance(model, inputs["input_ids"], inputs["input_ids"][:2], loss, 1.0)
    few = {key: value[:2] for key, value in inputs.items()}
    torch.testing.assert_close(la.predictive_distribution(few)[1].double(), exact, rtol=1e-3, atol=1e-6)


def test_the_trainers_own_loader_fits(tmp_path):
    of = tokenizer()
    rows = [{**of(text), "label": i % 3} for i, text in enumerate(sentences())]
    model = bert()
    options = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=5, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, options, DataCollatorWithPadding(of), train_dataset=rows)
    trainer.train()
    la = Laplace(model, subset_of_weights="last_layer", progress=False).fit(trainer.get_train_dataloader())
    assert la.fitted.num_samples == N
    assert la(next(iter(trainer.get_eval_dataloader(rows)))).shape[1:] == (3,)


class OfWholeBatch(torch.nn.Module):
    """As laplace-torch has its users wrap such a model: forward takes the whole batch."""

    def __init__(self):
        super().__init__()
        self.hf_model = bert()
        self.hf_model.config.return_dict = False

    def forward(self, data):
        return self.hf_model(input_ids=data["input_ids"], attention_mask=data["attention_mask"])


def test_a_wrapper_of_the_whole_batch_is_the_model_of_keywords():
    how = {"subset_of_weights": "last_layer", "hessian_structure": "full", "progress": False}
    wrapped, plain = Laplace(OfWholeBatch(), **how).fit(encoded()), Laplace(bert(), **how).fit(encoded())
    batch = next(iter(encoded()))
    torch.testing.assert_close(wrapped(batch), plain(batch), rtol=1e-4, atol=1e-5)
