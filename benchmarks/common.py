"""What the benchmarks share: digits, the tutorial's CNN, clocks, and a fresh process for every measurement."""

import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "examples")]
DATA = HERE.parent / "data"


def digits(train=True, count=None, root=DATA):
    """Normalised images (N, 1, 28, 28) and labels, as torch tensors."""
    import torch
    from digits import load_digits

    found = load_digits(root)
    images, labels = (found.train_images, found.train_labels) if train else (found.test_images, found.test_labels)
    # fewer digits than asked for (the packaged subset) are repeated: the arithmetic is the same
    wanted = len(labels) if count is None else count
    rows = torch.arange(wanted) % len(labels)
    return torch.from_numpy(images).permute(0, 3, 1, 2)[rows].contiguous(), torch.from_numpy(labels)[rows]


def trained_cnn(steps=100, seed=0):
    """The tutorial's CNN after some steps of Adam."""
    from models import seed_cnn

    return trained(seed_cnn, steps, seed)


def trained(make, steps, seed=0, count=None):
    """A network after some steps of Adam, on so many digits."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    images, labels = digits(count=count)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def as_fitted(model, images):
    """A traced model of one example, and its weights, as a fit has them: for the core's own parts."""
    from bridge import trace
    from bridge.fitting import output_layout
    from bridge.losses import to_loss
    from bridge.one_example import model_and_params

    loss = to_loss("classification")
    return model_and_params(trace(model, images[:2]), output_layout(model, images[:2], loss), loss, None)


def jax_cnn(model):
    """The same network as a JAX user writes it, and its parameters: for libraries that take a JAX function."""
    import jax
    import jax.numpy as jnp

    def pool(x, k, stride):
        window, strides = (1, 1, k, k), (1, 1, stride, stride)
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "VALID") / k**2

    def model_fn(input, params):
        x = input[None]
        for i, (k, stride) in zip((0, 3, 6), ((2, 2), (2, 2), (3, 1)), strict=True):
            kernel, bias = params[f"{i}.weight"], params[f"{i}.bias"]
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW"))
            x = pool(jax.nn.relu(x + bias[None, :, None, None]), k, stride)
        return (x.reshape(1, -1) @ params["10.weight"].T + params["10.bias"])[0]

    return model_fn, {name: jnp.asarray(p.detach().numpy()) for name, p in model.named_parameters()}


def median_seconds(function, rounds=31, warm_up=3):
    """Median over rounds, after a few that are not counted."""
    times = []
    for i in range(rounds + warm_up):
        start = time.perf_counter()
        function()
        if i >= warm_up:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds(function):
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alone(script, worker, *args, repeats=1):
    """Run a script's worker in a fresh process: the medians of its figures, and its peak memory."""
    command = [sys.executable, "-W", "ignore", str(script), worker, *map(str, args)]
    found = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def main(workers, table):
    """A worker if one is named on the command line, else the table."""
    warnings.filterwarnings("ignore")
    if len(sys.argv) > 1 and sys.argv[1] in workers:
        figures = workers[sys.argv[1]](*sys.argv[2:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(figures | {"peak_gb": peak}))
    else:
        table()


def print_table(header, rows):
    """Markdown."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
