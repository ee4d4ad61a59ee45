"""The tutorial's fit (128 digits, Lanczos, rank 100) and 10,000 predictions, from torch: ours against laplax's.

"cold" counts from the import of the library to the posterior, tracing and compilation included; "warm" is a second
reduction in the same process, once by Lanczos as laplax's and once as `method="auto"` does it here: exact eigenpairs
from the Gram matrix. Predictions are ours with the exact covariance and the probit link, laplax's with 30
samples, jitted and vmapped, from 1,000 of them; both in batches of 100. Medians of three processes.
"""

import statistics
import time
from dataclasses import replace

from common import alone, digits, main, print_table, seconds, trained_cnn


def ours():
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    model = trained_cnn()
    images, labels = digits(count=128)
    test, _ = digits(train=False, count=10_000)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32)
    start = time.perf_counter()
    import jax

    from bridge import Laplace

    la = Laplace(model, likelihood="classification", rank=100, method="lanczos", progress=False)
    la.fit(loader)
    cold = time.perf_counter() - start

    from jax_core import LoaderPasses, fit_curvature

    def again(options):
        passes = LoaderPasses([(x.numpy(), y.numpy()) for x, y in loader])
        passes.preload()
        key = jax.random.key(0)
        found = fit_curvature(la._fit.model_fn, la._fit.params, la.loss_fn.likelihood, passes, options, key=key)
        jax.block_until_ready(found.curvature.U)

    automatic = replace(la.options, method="auto")
    again(automatic)
    warm = statistics.median(seconds(lambda: again(la.options)) for _ in range(5))
    exact = statistics.median(seconds(lambda: again(automatic)) for _ in range(5))
    la(test[:100])
    predict = seconds(lambda: [la(x) for x in test.split(100)])
    with torch.no_grad():
        forward = statistics.median(seconds(lambda: [model(x) for x in test.split(100)]) for _ in range(5))
    names = ("fit, cold", "fit, warm", "fit, warm, method='auto'", "10,000 predictions", "forward")
    return dict(zip(names, (cold, warm, exact, predict, forward), strict=True))


def laplax():
    from against_laplax import measure

    found = measure("laplax")
    return {
        "fit, cold": found["Lanczos, rank 100, cold"],
        "fit, warm": found["Lanczos, rank 100, again"],
        "fit, warm, method='auto'": found["Lanczos, rank 100, again"],
        "10,000 predictions": 10 * found["1,000 predictions"],
    }


def table():
    found, peer = alone(__file__, "ours", repeats=3), alone(__file__, "laplax", repeats=3)
    names = ("fit, cold", "fit, warm", "fit, warm, method='auto'", "10,000 predictions")
    rows = [[name, f"{found[name]:.2f}", f"{peer[name]:.1f}", f"{peer[name] / found[name]:.1f}"] for name in names]
    print_table(["", "ours (s)", "laplax (s)", "times faster"], rows)
    forwards = found["10,000 predictions"] / found["forward"]
    print(f"\n10,000 predictions take {forwards:.0f} of torch's forward passes over them ({found['forward']:.2f} s)")


WORKERS = {"ours": ours, "laplax": laplax}

if __name__ == "__main__":
    main(WORKERS, table)
