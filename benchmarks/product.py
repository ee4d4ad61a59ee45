"""One GGN product on the tutorial's CNN, in units of torch's own no-grad forward pass on the same batch.

Every library in a process of its own; medians of 31 products and of three processes. "block" is a product with 32
vectors at once, per vector: ours through the Jacobian of each image, the strategy that the cost model prefers to
products there.
"""

from common import alone, as_fitted, digits, jax_cnn, main, median_seconds, print_table, trained_cnn

BATCHES, VECTORS = (32, 128, 512), 32


def setting(size):
    import torch

    model = trained_cnn()
    images, labels = digits(count=int(size))
    with torch.no_grad():
        forward = median_seconds(lambda: model(images))
    return model, images, labels, forward


def ours(size):
    import jax
    import jax.numpy as jnp

    from bridge import to_jax, trace
    from jax_core import Categorical, LoaderPasses, create_ggn_mv_without_data, get_size
    from jax_core.gradients.jacobian_stream import JacobianStream
    from jax_core.source import Source

    model, images, labels, forward = setting(size)
    traced = trace(model, images[:2])
    data = {"input": to_jax(images), "target": to_jax(labels)}
    product = jax.jit(
        create_ggn_mv_without_data(
            lambda input, params: traced.apply(params, input[None])[0], traced.params, "cross_entropy"
        )
    )
    vector = jax.tree.map(jnp.ones_like, traced.params)
    one = median_seconds(lambda: jax.block_until_ready(product(vector, data)))
    passes = LoaderPasses([(data["input"], data["target"])])
    source, _ = Source(*as_fitted(model, images), Categorical(), passes).in_order_of_gradients
    stream = JacobianStream(source.model_fn, source.params, source.likelihood, passes)
    block = jnp.ones((VECTORS, get_size(traced.params)))
    many = median_seconds(lambda: jax.block_until_ready(stream.block(block)), rounds=5)
    return {"forward": forward, "one": one, "block": many / VECTORS}


def laplax(size):
    import jax
    import jax.numpy as jnp
    from laplax.curv.ggn import create_ggn_mv_without_data

    model, images, labels, forward = setting(size)
    model_fn, params = jax_cnn(model)
    data = {"input": jnp.asarray(images.numpy()), "target": jnp.asarray(labels.numpy())}
    mv = create_ggn_mv_without_data(model_fn, params, loss_fn="cross_entropy", factor=1.0)
    product, several = jax.jit(mv), jax.jit(jax.vmap(mv, in_axes=(0, None)))
    vector = jax.tree.map(jnp.ones_like, params)
    one = median_seconds(lambda: jax.block_until_ready(product(vector, data)))
    block = jax.tree.map(lambda leaf: jnp.ones((VECTORS, *leaf.shape)), params)
    many = median_seconds(lambda: jax.block_until_ready(several(block, data)), rounds=3, warm_up=1)
    return {"forward": forward, "one": one, "block": many / VECTORS}


def curvlinops(size):
    import torch
    from curvlinops import GGNLinearOperator
    from torch import nn

    model, images, labels, forward = setting(size)
    loss, params = nn.CrossEntropyLoss(reduction="sum"), list(model.parameters())
    operator = GGNLinearOperator(model, loss, params, [(images, labels)], check_deterministic=False)
    vector = torch.ones(operator.shape[1])
    one = median_seconds(lambda: operator @ vector)
    many = median_seconds(lambda: operator @ torch.ones(operator.shape[1], VECTORS), rounds=3, warm_up=1)
    return {"forward": forward, "one": one, "block": many / VECTORS}


def table():
    rows = []
    for size in BATCHES:
        found = {name: alone(__file__, name, size, repeats=3) for name in WORKERS}
        forward = sorted(f["forward"] for f in found.values())[1]
        for kind in ("one", "block"):
            ratios = [f"{found[name][kind] / forward:.2f}" for name in WORKERS]
            rows.append(
                [f"{size} images, {'one vector' if kind == 'one' else 'block of 32'}", f"{forward * 1e3:.1f}", *ratios]
            )
    print_table(["product", "torch forward (ms)", *WORKERS], rows)


WORKERS = {"ours": ours, "laplax": laplax, "curvlinops": curvlinops}

if __name__ == "__main__":
    main(WORKERS, table)
