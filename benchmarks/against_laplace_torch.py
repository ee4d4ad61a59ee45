"""Fits and predictions against laplace-torch's, both in one process on the same images.

Last layer: ResNet-18 on 64 x 64 images, Kronecker factors and the full matrix. All weights: Kronecker factors of the
tutorial's CNN on digits, with the peak memory of a process that does nothing else. "cold" holds tracing and
compilation; a second fit of the same object comes after it. Seconds are divided by those of torch's no-grad forward
pass over the same images. Predictions are probabilities by the probit link, in batches of 100, ours after one batch
that compiles; laplace-torch's in smaller ones where a process of 16 GB cannot hold more of them at once. Medians of
`--repeats` processes; `--samples 500` is a quick try.
"""

import argparse
import resource
import time

from common import alone, digits, main, print_table, seconds, trained_cnn

LIMIT = 16 * 2**30  # bytes that are allocated
FITS = ("forward", "ours, cold", "ours, again", "ours, predictions", "laplace-torch", "laplace-torch, predictions")


def data(images, labels, size):
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(images, labels), batch_size=size)


def resnet(samples):
    import torch
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    images, labels = torch.randn(samples, 3, 64, 64), torch.randint(10, (samples,))
    return model, images, labels


def fit_ours(model, images, labels, subset, structure):
    from bridge import Laplace

    how = {"subset_of_weights": subset, "hessian_structure": structure, "prior_precision": 1.0}
    la = Laplace(model, likelihood="classification", link_approx="probit", progress=False, **how)
    loader = data(images, labels, 100)
    return la, seconds(lambda: la.fit(loader)), loader


def fit_peer(model, images, labels, subset, structure):
    from laplace import Laplace

    la = Laplace(model, "classification", subset_of_weights=subset, hessian_structure=structure)
    loader = data(images, labels, 100)
    return la, seconds(lambda: la.fit(loader))


def predict_peer(la, images):
    """Probabilities, in batches as large as fit, up to 100; their size, and the seconds with it alone."""
    import torch

    size, kept = 100, resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, kept[1]))
    while True:
        start = time.perf_counter()
        try:
            found = torch.cat([la(x, pred_type="glm", link_approx="probit") for x in images.split(size)])
        except (RuntimeError, MemoryError):  # torch's allocator says it by the first
            if size == 1:
                raise
            size //= 2
        else:
            resource.setrlimit(resource.RLIMIT_DATA, kept)
            return found, size, time.perf_counter() - start


def both(model, images, labels, predicted, subset, structure):
    import torch

    with torch.no_grad():
        model(images[:100])
        forward = min(seconds(lambda: [model(x) for x in images.split(100)]) for _ in range(2))
    la, cold, loader = fit_ours(model, images, labels, subset, structure)
    again = seconds(lambda: la.fit(loader))
    la(predicted[:100])
    start = time.perf_counter()
    ours = torch.cat([la(x) for x in predicted.split(100)])
    predictions = time.perf_counter() - start
    peer, fitted = fit_peer(model, images, labels, subset, structure)
    theirs, _, needed = predict_peer(peer, predicted)
    found = dict(zip(FITS, (forward, cold, again, predictions, fitted, needed), strict=True))
    return found | {"difference": float((ours - theirs).abs().max())}


def last_layer(structure, samples):
    model, images, labels = resnet(int(samples))
    return both(model, images, labels, images, "last_layer", structure)


def all_weights(samples):
    model, (images, labels) = trained_cnn(300), digits(count=int(samples))
    test = digits(train=False, count=max(100, int(samples) // 10))[0]
    return both(model, images, labels, test, "all", "kron")


def alone_ours(samples):
    la, _, _ = fit_ours(trained_cnn(300), *digits(count=int(samples)), "all", "kron")
    for x in digits(train=False, count=max(100, int(samples) // 10))[0].split(100):
        la(x)
    return {}


def alone_peer(samples):
    la, _ = fit_peer(trained_cnn(300), *digits(count=int(samples)), "all", "kron")
    return {"batch": predict_peer(la, digits(train=False, count=max(100, int(samples) // 10))[0])[1]}


def table():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000, help="images that are fitted")
    parser.add_argument("--repeats", type=int, default=3, help="processes, of which medians are shown")
    parser.add_argument("--rows", nargs="*", default=["full", "kron", "weights"], help="which of the three")
    args = parser.parse_args()
    rows = []
    for row in args.rows:
        worker = ("all_weights",) if row == "weights" else ("last_layer", row)
        found = alone(__file__, *worker, args.samples, repeats=args.repeats)
        name = "all weights, kron" if row == "weights" else f"last layer, {row}"
        share = 1 if row != "weights" else max(100, args.samples // 10) / args.samples
        rows.append([f"{name}: fit", *_compared(found, "ours, cold", "laplace-torch", 1), ""])
        rows.append([f"{name}: fit again", *_compared(found, "ours, again", "laplace-torch", 1), ""])
        pair = ("ours, predictions", "laplace-torch, predictions")
        rows.append([f"{name}: predictions", *_compared(found, *pair, share), f"{found['difference']:.1e}"])
    header = ["", "ours (s)", "laplace-torch (s)", "ours / theirs", "ours, forwards", "theirs, forwards"]
    print_table([*header, "largest difference of probabilities"], rows)
    if "weights" in args.rows:
        ours, theirs = (alone(__file__, worker, args.samples) for worker in ("alone_ours", "alone_peer"))
        peaks = f"{ours['peak_gb']:.2f} GB, laplace-torch {theirs['peak_gb']:.2f} GB in batches of {theirs['batch']}"
        print(f"\nPeak memory, all weights: {peaks}")


def _compared(found, ours, theirs, share):
    a, b, forward = found[ours], found[theirs], found["forward"] * share
    return f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}", f"{a / forward:.2f}", f"{b / forward:.2f}"


WORKERS = {
    "last_layer": last_layer,
    "all_weights": all_weights,
    "alone_ours": alone_ours,
    "alone_peer": alone_peer,
}

if __name__ == "__main__":
    main(WORKERS, table)
