"""The tutorial's calls, the same ones on the same JAX function, in `jax_core` and in laplax 0.0.2.

Products on 32, 128 and 512 images; a rank-100 Lanczos posterior from four batches of 32, in a cold process and again;
1,000 predictions with 30 samples, compiled and vmapped as in the tutorial. One process each; medians of 31 products.
"""

import importlib
import time

from common import alone, digits, jax_cnn, main, median_seconds, print_table, seconds, trained_cnn

SIZES = (32, 128, 512)


def measure(library):
    model = trained_cnn()
    images, labels = (tensor.numpy() for tensor in digits(count=1000))
    start = time.perf_counter()
    import jax
    import jax.numpy as jnp

    if library == "laplax":
        modules = [importlib.import_module(f"laplax.{name}") for name in ("curv.cov", "curv.ggn", "util.loader")]
        push = importlib.import_module("laplax.eval.pushforward")
    else:
        push = importlib.import_module("jax_core")
        modules = [push] * 3
    names = ("create_posterior_fn", "create_ggn_mv_without_data", "DataLoaderMV")
    parts = {name: getattr(module, name) for name, module in zip(names, modules, strict=True)}
    model_fn, params = jax_cnn(model)
    batches = [{"input": images[i : i + 32], "target": labels[i : i + 32]} for i in range(0, 128, 32)]
    mv = parts["create_ggn_mv_without_data"](model_fn, params, loss_fn="cross_entropy", factor=60_000 / 128)
    summed = {"transform": lambda batch: batch, "reduce": modules[2].reduce_add}
    loader_mv = parts["DataLoaderMV"](mv, batches, **summed)

    def fit():
        options = {"layout": params, "key": jax.random.key(0), "rank": 100, "mv_jit": False}
        return parts["create_posterior_fn"]("lanczos", mv=loader_mv, **options)

    posterior_fn = fit()
    figures = {"Lanczos, rank 100, cold": time.perf_counter() - start}
    figures["Lanczos, rank 100, again"] = seconds(fit)
    product, vector = jax.jit(mv), jax.tree.map(jnp.ones_like, params)
    for size in SIZES:
        data = {"input": jnp.asarray(images[:size]), "target": jnp.asarray(labels[:size])}
        figures[f"GGN product, {size} images"] = median_seconds(
            lambda data=data: jax.block_until_ready(product(vector, data))
        )
    pushforward = push.set_lin_pushforward(
        model_fn=model_fn,
        mean_params=params,
        posterior_fn=posterior_fn,
        prior_arguments={"prior_prec": 1e4},
        pushforward_fns=[push.lin_setup, push.lin_pred_mean, push.lin_mc_pred_act],
        key=jax.random.key(0),
        num_samples=30,
    )
    predict = jax.jit(jax.vmap(pushforward))
    parts_of_32 = [jnp.asarray(images[i : i + 32]) for i in range(0, 960, 32)]
    jax.block_until_ready(predict(parts_of_32[0]))
    figures["1,000 predictions"] = seconds(lambda: [jax.block_until_ready(predict(x)) for x in parts_of_32]) / 0.96
    return figures


def table():
    found = {name: alone(__file__, name) for name in WORKERS}
    rows = [
        [name, f"{found['ours'][name]:.3g}", f"{peer:.3g}", f"{peer / found['ours'][name]:.1f}"]
        for name, peer in found["laplax"].items()
        if name != "peak_gb"
    ]
    print_table(["call", "jax_core (s)", "laplax (s)", "times faster"], rows)


WORKERS = {"ours": lambda: measure("ours"), "laplax": lambda: measure("laplax")}

if __name__ == "__main__":
    main(WORKERS, table)
