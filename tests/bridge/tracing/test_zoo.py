"""Whole architectures, verified against torch as `trace` does it, then called with another batch size."""

import jax
import numpy as np
import pytest
import torch

from bridge.tensors import to_jax
from bridge.tracing import trace

torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

# on small images; `make test` runs these
SMALL = {
    "alexnet": 64,
    "resnet18": 32,
    "squeezenet1_0": 64,
    "shufflenet_v2_x0_5": 32,
    "mobilenet_v3_small": 32,
}
# the rest of the families, marked `zoo`, so ordered that no third of them is much longer than the others
LARGE = {
    "vgg11_bn": 32,
    "googlenet": 64,
    "resnet50": 32,
    "wide_resnet50_2": 32,
    "efficientnet_b0": 32,
    "swin_v2_t": 64,
    "inception_v3": 96,
    "resnext50_32x4d": 32,
    "mobilenet_v2": 32,
    "mnasnet0_5": 32,
    "vit_b_16": 224,
    "swin_t": 64,
    "densenet121": 32,
    "efficientnet_v2_s": 32,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "maxvit_t": 224,
}
ZOO = (pytest.mark.zoo, pytest.mark.in_turns)
pytestmark = pytest.mark.filterwarnings("ignore")


def carried(model, inputs, more):
    model = model.eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a comparison of zeros with zeros proves nothing
            torch.nn.init.normal_(parameter, std=0.02)
    traced = trace(model, inputs)
    with torch.no_grad():
        wanted = model(*more) if isinstance(more, tuple) else model(**more)
    arrays = to_jax(more if isinstance(more, tuple) else (more,))
    got = jax.jit(traced.apply)(traced.params, *arrays)
    if not isinstance(wanted, torch.Tensor):
        got, wanted = got["logits"], wanted["logits"]
    error = np.linalg.norm(np.asarray(got) - wanted.numpy()) / np.linalg.norm(wanted.numpy())
    assert error < 1e-4


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=ZOO) for name in LARGE)])
def test_torchvision_models_are_carried(name):
    torch.manual_seed(0)
    size = {**SMALL, **LARGE}[name]
    model = getattr(torchvision.models, name)(weights=None)
    carried(model, (torch.randn(2, 3, size, size),), (torch.randn(5, 3, size, size),))


TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
DISTIL = {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "num_labels": 3}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "num_labels": 3}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}


def text(n):
    mask = torch.ones(n, 7, dtype=torch.long)
    mask[0, 5:] = 0
    return {"input_ids": torch.randint(5, 90, (n, 7)), "attention_mask": mask}


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "vit"])
def test_transformers_are_carried(name):
    torch.manual_seed(0)
    t = transformers
    image = t.ViTConfig(**IMAGE, image_size=16, patch_size=4, num_labels=3)
    model = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**TEXT)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(**DISTIL)),
        "gpt2": lambda: t.GPT2ForSequenceClassification(
            t.GPT2Config(**GPT, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        ),
        "vit": lambda: t.ViTForImageClassification(image),
    }[name]()
    inputs, more = ((torch.randn(n, 3, 16, 16),) if name == "vit" else text(n) for n in (2, 5))
    carried(model, inputs, more)
