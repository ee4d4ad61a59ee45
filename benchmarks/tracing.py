"""How well `bridge.trace` carries torchvision and transformers models: errors, seconds, speed against torch eager.

    python benchmarks/tracing.py                     # every model, batch 8 at 224 pixels
    python benchmarks/tracing.py resnet18 bert       # some of them

A row per model: seconds to trace on two examples (with the comparison) and to compile forward and gradient for eight;
relative errors of the outputs and of the gradient in float32; medians of interleaved timings as ratios to torch
eager's. Errors past 1e-4 are float32's own in networks with kinks: the tests compare in float64.
"""

import statistics
import sys
import time
import warnings

import jax
import numpy as np
import torch

import bridge

TORCHVISION = (
    *("alexnet", "vgg11_bn", "googlenet", "inception_v3", "resnet18", "resnet50", "wide_resnet50_2"),
    *("resnext50_32x4d", "densenet121", "squeezenet1_0", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
    *("swin_t", "swin_v2_t", "maxvit_t"),
)
TRANSFORMERS = ("bert", "roberta", "distilbert", "gpt2", "vit")
ROUNDS = 5


def torchvision_model(name):
    """A model with random weights and a batch of 8."""
    import torchvision

    size = 299 if name == "inception_v3" else 224
    return getattr(torchvision.models, name)(weights=None), (torch.randn(8, 3, size, size),)


def transformers_model(name):
    """A model with a tiny random configuration and a batch of 8."""
    import transformers as t

    text = {"vocab_size": 99, "num_labels": 3}
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    gpt = {"n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    distil = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37}
    if name == "vit":
        config = t.ViTConfig(**bert, image_size=32, patch_size=4, num_labels=3)
        return t.ViTForImageClassification(config), (torch.randn(8, 3, 32, 32),)
    model = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**text, **bert)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**text, **bert)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(**text, **distil)),
        "gpt2": lambda: t.GPT2ForSequenceClassification(t.GPT2Config(**text, **gpt)),
    }[name]()
    return model, {"input_ids": torch.randint(5, 90, (8, 32)), "attention_mask": torch.ones(8, 32, dtype=torch.long)}


def logits(output):
    """The tensor that is compared."""
    return output if isinstance(output, torch.Tensor | jax.Array) else output["logits"]


def medians(functions):
    """Seconds of each, in turns, so that a busy machine slows all alike."""
    times = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, record in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


def measure(name):
    """One row."""
    torch.manual_seed(0)
    model, inputs = (transformers_model if name in TRANSFORMERS else torchvision_model)(name)
    model.eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a comparison of zeros with zeros proves nothing
            torch.nn.init.normal_(parameter, std=0.02)
    few = {k: v[:2] for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(v[:2] for v in inputs)
    start = time.perf_counter()
    traced = bridge.trace(model, few)
    to_trace = time.perf_counter() - start
    arrays = bridge.to_jax(inputs if isinstance(inputs, tuple) else (inputs,))
    params = list(model.parameters())

    def torch_forward():
        return logits(model(*inputs) if isinstance(inputs, tuple) else model(**inputs))

    def torch_quietly():
        with torch.no_grad():
            torch_forward()

    def torch_gradient():
        return torch.autograd.grad(torch_forward().square().sum(), params, allow_unused=True, materialize_grads=True)

    def forward(traced, params, arrays):
        return logits(traced.apply(params, *arrays))

    def loss(params, traced, arrays):
        return (forward(traced, params, arrays) ** 2).sum()

    start = time.perf_counter()
    run = jax.jit(forward).lower(traced, traced.params, arrays).compile()
    slope = jax.jit(jax.grad(loss)).lower(traced.params, traced, arrays).compile()
    to_compile = time.perf_counter() - start
    with torch.no_grad():
        wanted = torch_forward().numpy()
    got = np.asarray(run(traced, traced.params, arrays))
    gradients = slope(traced.params, traced, arrays)
    named = dict(zip([n for n, _ in model.named_parameters()], torch_gradient(), strict=True))
    wide = {n: (np.asarray(gradients[n], np.float64), named[n].double().numpy()) for n in gradients}
    difference = np.sqrt(sum(float(np.sum((got - want) ** 2)) for got, want in wide.values()))
    norm = np.sqrt(sum(float(np.sum(want**2)) for _, want in wide.values()))
    a, b, c, d = medians(
        [
            torch_quietly,
            lambda: run(traced, traced.params, arrays).block_until_ready(),
            torch_gradient,
            lambda: jax.block_until_ready(slope(traced.params, traced, arrays)),
        ]
    )
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    figures = f"{to_trace:.0f} | {to_compile:.0f} | {error:.0e} | {difference / norm:.0e} | {b / a:.2f} | {d / c:.2f}"
    return f"| {name} | {figures} |"


def main():
    """Print the table."""
    warnings.filterwarnings("ignore")
    print("| model | trace (s) | compile (s) | error | gradient error | forward / torch | gradient / torch |")
    print("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or (*TORCHVISION, *TRANSFORMERS):
        try:
            print(measure(name), flush=True)
        except Exception as error:
            print(f"| {name} | {type(error).__name__}: {str(error).splitlines()[0][:80]} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
