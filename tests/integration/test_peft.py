"""Adapters of peft: they and the head are what the posterior is over, and its variances are the exact ones."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.nn import functional as F

import bridge
from bridge import Laplace
from tests.integration.tiny import bert, encoded, exact_variance, llama_reward, lora, whole

# peft's, of a name that transformers is about to drop
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.in_turns,
]

MODELS = {
    "bert": (bert, ("query", "value"), "classification", 3),
    "llama reward": (llama_reward, ("q_proj", "v_proj"), "regression", 1),
}


def adapted(kind):
    make, targets, likelihood, labels = MODELS[kind]
    return lora(make(), *targets), likelihood, labels


def as_targets(loader, likelihood):
    if likelihood == "classification":
        return loader
    return [{**batch, "labels": batch["labels"].float()[:, None]} for batch in loader]


@pytest.mark.parametrize("kind", MODELS)
def test_only_adapters_and_head_are_in_the_posterior_and_the_variance_is_exact(kind):
    model, likelihood, labels = adapted(kind)
    loader = as_targets(encoded(), likelihood)
    la = Laplace(model, likelihood, hessian_structure="full", prior_precision=2.0, progress=False).fit(loader)
    assert set(la.order.names) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "classifier" in name or "score" in name for name in la.order.names)
    inputs, targets = whole(encoded(pad_to=8))

    def loss(outputs, i):
        if labels == 1:  # scores, not classes
            return 0.5 * ((outputs - targets[i]) ** 2).sum()
        return F.cross_entropy(outputs, targets[i : i + 1], reduction="sum")

    mean, covariance = la.predictive_distribution({key: value[:4] for key, value in inputs.items()})
    exact = exact_variance(model, inputs["input_ids"], inputs["input_ids"][:4], loss, 2.0)
    torch.testing.assert_close(covariance.double(), exact, rtol=2e-3, atol=1e-4 * float(exact.abs().max()))
    torch.testing.assert_close(mean, model(**{k: v[:4] for k, v in inputs.items()}).logits.detach())


def test_a_posterior_goes_with_saved_adapters(tmp_path):
    model, likelihood, _ = adapted("bert")
    loader = encoded()
    la = Laplace(model, likelihood, hessian_structure="diag", progress=False).fit(loader)
    adapters = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    bridge.save(la, tmp_path / "posterior.safetensors")
    new = lora(bert(), "query", "value")
    set_peft_model_state_dict(new, adapters)
    again = bridge.load(tmp_path / "posterior.safetensors", Laplace(new, hessian_structure="diag", progress=False))
    torch.testing.assert_close(again(whole(encoded(pad_to=8))[0]), la(whole(encoded(pad_to=8))[0]))


def test_a_last_layer_posterior_is_that_of_the_merged_model():
    model, likelihood, _ = adapted("bert")
    la = Laplace(model, likelihood, subset_of_weights="last_layer", hessian_structure="full", progress=False)
    la.fit(encoded())
    merged = copy.deepcopy(model).merge_and_unload()
    for name, p in merged.named_parameters():
        p.requires_grad_("classifier" in name)
    other = Laplace(merged, likelihood, hessian_structure="full", progress=False).fit(encoded())
    inputs = whole(encoded(pad_to=8))[0]
    torch.testing.assert_close(other(inputs), la(inputs), rtol=1e-4, atol=1e-5)


class OfOneMapping(nn.Module):
    """As laplace-torch asks for: all inputs in one mapping."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, data):
        return self.last(torch.tanh(self.first(data["values"])) * data["scale"])


def test_adapters_around_a_model_of_one_mapping_hand_it_on():
    torch.manual_seed(0)
    model = get_peft_model(OfOneMapping(), LoraConfig(r=2, target_modules=["first"], init_lora_weights=False)).eval()
    batch = {"values": torch.randn(6, 3), "scale": torch.rand(6, 1), "labels": torch.arange(6) % 2}
    la = Laplace(model, hessian_structure="full", progress=False).fit([batch])
    inputs = {name: batch[name] for name in ("values", "scale")}
    torch.testing.assert_close(la.predictive_distribution(inputs)[0], model(inputs).detach())
