"""Larger networks: the flax documentation's CNN (824,458 parameters) and ResNet-18 on 64 x 64 images.

Seconds of the whole fit from a cold process without imports, peak memory of the process, and for ResNet-18 what a
product with one vector costs in torch's no-grad forward passes over the same images.
"""

import time

from common import alone, digits, main, print_table

RESNET_IMAGES, RESNET_RANK = 1_000, 20


def docs_cnn():
    import torch
    from models import docs_cnn
    from torch.utils.data import DataLoader, TensorDataset

    from bridge import Laplace

    torch.manual_seed(0)
    la = Laplace(docs_cnn(), likelihood="classification", rank=50, progress=False)
    start = time.perf_counter()
    la.fit(DataLoader(TensorDataset(*digits(count=10_000)), batch_size=128))
    fit = time.perf_counter() - start
    print(la.plan)
    test = digits(train=False, count=1000)[0]
    la(test[:100])
    start = time.perf_counter()
    for x in test.split(100):
        la(x)
    return {"fit": fit, "predict": time.perf_counter() - start}


def resnet18():
    import torch
    import torchvision
    from torch.utils.data import DataLoader, TensorDataset

    from bridge import Laplace

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    images, labels = torch.randn(RESNET_IMAGES, 3, 64, 64), torch.randint(10, (RESNET_IMAGES,))
    la = Laplace(model, likelihood="classification", rank=RESNET_RANK, progress=False)
    start = time.perf_counter()
    la.fit(DataLoader(TensorDataset(images, labels), batch_size=50))
    fit = time.perf_counter() - start
    print(la.plan)
    with torch.no_grad():
        model(images[:50])
        start = time.perf_counter()
        for x in images.split(50):
            model(x)
        forward = time.perf_counter() - start
    vectors = RESNET_RANK + 10  # oversampling
    return {"fit": fit, "forward": forward, "product": fit / vectors / forward}


def table():
    cnn, resnet = alone(__file__, "docs_cnn"), alone(__file__, "resnet18")
    rows = [
        ["824,458-parameter CNN, rank 50, 10,000 digits", f"{cnn['fit']:.0f}", f"{cnn['peak_gb']:.2f}", ""],
        [
            f"ResNet-18, rank {RESNET_RANK}, {RESNET_IMAGES:,} images of 64 x 64",
            f"{resnet['fit']:.0f}",
            f"{resnet['peak_gb']:.2f}",
            f"{resnet['product']:.2f}",
        ],
    ]
    print_table(["", "fit (s)", "peak memory (GB)", "a product, in torch forwards (all of the fit counted)"], rows)
    print(f"\n1,000 predictions of the CNN: {cnn['predict']:.1f} s")


WORKERS = {"docs_cnn": docs_cnn, "resnet18": resnet18}

if __name__ == "__main__":
    main(WORKERS, table)
