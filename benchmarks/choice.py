"""Whether `method="auto"` chooses well: every fixed way on each case, and the one that it took.

Seconds of a whole `fit_curvature` in a fresh process, compilation included. Lanczos gives less for as many vectors; it
stands there for its time alone.
"""

import time

from common import alone, as_fitted, digits, main, print_table, trained_cnn

WAYS = ("auto", "gram/rows", "nystrom/rows", "nystrom/jacobians", "nystrom/products", "lanczos/products")


def case(name):
    import torch
    from models import docs_cnn
    from torch import nn

    torch.manual_seed(0)
    if name == "CNN, 100 digits, rank 50":
        return trained_cnn(), *digits(count=100), 50
    if name == "CNN, 2,000 digits, rank 100":
        return trained_cnn(), *digits(count=2_000), 100
    if name == "824,458-parameter CNN, 500 digits, rank 30":
        return docs_cnn(), *digits(count=500), 30
    width = 64 if "small" in name else 512
    model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    return model, torch.randn(4_000, 64), torch.randint(10, (4_000,)), 50


CASES = (
    "CNN, 100 digits, rank 50",
    "CNN, 2,000 digits, rank 100",
    "824,458-parameter CNN, 500 digits, rank 30",
    "small MLP, 4,000 samples, rank 50",
    "wide MLP, 4,000 samples, rank 50",
)
FEW_ROWS = CASES[:1]  # elsewhere the Gram matrix takes half an hour, or its rows more than the memory


def measure(name, way):
    import jax

    from bridge import to_jax
    from jax_core import Categorical, FitOptions, LoaderPasses, fit, fit_curvature
    from jax_core.lowrank.plan import Plan

    model, inputs, targets, rank = case(name)
    model_fn, params = as_fitted(model, inputs)
    steps = range(0, len(inputs), 128)
    passes = LoaderPasses([(to_jax(inputs[i : i + 128]), to_jax(targets[i : i + 128])) for i in steps])
    passes.preload()
    if way != "auto":
        fit.make_plan = lambda source, options: Plan(*way.split("/"), "fixed")
    options = FitOptions(rank=rank, progress=False, rows_bytes=2**32)
    start = time.perf_counter()
    found = fit_curvature(model_fn, params, Categorical(), passes, options, key=jax.random.key(0))
    jax.block_until_ready(found.curvature.U)
    return {"seconds": time.perf_counter() - start, "way": WAYS.index(f"{found.plan.method}/{found.plan.strategy}")}


def rows():
    for name in CASES:
        found = {way: alone(__file__, "measure", name, way) for way in WAYS if "gram" not in way or name in FEW_ROWS}
        best = min(f["seconds"] for way, f in found.items() if way != "auto")
        chosen = WAYS[int(found["auto"]["way"])]
        seconds = [f"{found[way]['seconds']:.1f}" if way in found else "" for way in WAYS]
        yield [name, *seconds, chosen, f"{found['auto']['seconds'] / best:.2f}"]


def table():
    print_table(["case", *WAYS, "auto chose", "auto over the best"], rows())


WORKERS = {"measure": measure}

if __name__ == "__main__":
    main(WORKERS, table)
