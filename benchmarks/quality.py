"""How far each reduction's predictive variance is from the exact posterior's: 512 digits, where all rows fit.

The exact posterior keeps every eigenpair (Gram matrix of all rows, nothing dropped). Median over 500 test digits and
10 outputs of the ratio of predictive variances; what is missing from a low rank makes it larger than one.
"""

from common import alone, as_fitted, digits, main, print_table, trained_cnn

CURVATURE, TEST = 512, 500
WAYS = {
    "Lanczos, 100 steps": {"method": "lanczos", "rank": 100},
    "Nystrom, rank 100": {"method": "nystrom", "rank": 100},
    "Nystrom, rank 100, two passes": {"method": "nystrom", "rank": 100, "passes": 2},
    "Nystrom, rank 200": {"method": "nystrom", "rank": 200},
    "exact eigenpairs, rank 100": {"method": "gram", "rank": 100, "tolerance": 0.0},
    "exact eigenpairs, rank 200": {"method": "gram", "rank": 200, "tolerance": 0.0},
}
PRIORS = (1.0, 100.0)


def measure():
    import jax
    import jax.numpy as jnp

    from bridge import to_jax
    from jax_core import Categorical, FitOptions, LoaderPasses, Posterior, fit_curvature, map_jacobians

    model = trained_cnn(600)
    images, labels = digits(count=CURVATURE)
    model_fn, params = as_fitted(model, images)

    def curvature(**options):
        passes = LoaderPasses(
            [(to_jax(images[i : i + 64]), to_jax(labels[i : i + 64])) for i in range(0, CURVATURE, 64)]
        )
        passes.preload()
        chosen = FitOptions(progress=False, rows_bytes=2**31, **options)
        return fit_curvature(model_fn, params, Categorical(), passes, chosen, key=jax.random.key(0)).curvature

    rows = map_jacobians(model_fn, params, lambda outputs, rows: rows)(to_jax(digits(train=False, count=TEST)[0]))

    def variance(operator, prior):
        posterior = Posterior.create(params, operator, jnp.asarray(prior))
        parts = [posterior.output_covariance(rows[i : i + 50]) for i in range(0, TEST, 50)]
        return jnp.diagonal(jnp.concatenate(parts), axis1=-2, axis2=-1)

    exact = curvature(method="gram", rank=CURVATURE * 10, tolerance=0.0)
    wanted = {prior: variance(exact, prior) for prior in PRIORS}
    figures = {}
    for name, options in WAYS.items():
        found = curvature(**options)
        for prior in PRIORS:
            figures[f"{name}/{prior}"] = float(jnp.median(variance(found, prior) / wanted[prior]))
    return figures


def table():
    found = alone(__file__, "measure")
    rows = [[name, *(f"{found[f'{name}/{prior}']:.3f}" for prior in PRIORS)] for name in WAYS]
    print_table(["variance over the exact one, median", *(f"prior precision {prior:g}" for prior in PRIORS)], rows)


WORKERS = {"measure": measure}

if __name__ == "__main__":
    main(WORKERS, table)
