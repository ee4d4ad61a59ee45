"""How the fit grows with samples and rank: the tutorial's CNN, streamed (cache="none") through a DataLoader.

Seconds from the call of `fit` in a fresh process, tracing and compilation included, and peak memory.
"""

import time

from common import alone, digits, main, print_table, trained_cnn

SAMPLES, RANKS = (1_000, 4_000, 16_000, 60_000), (25, 50, 100, 200)


def measure(samples, rank):
    from torch.utils.data import DataLoader, TensorDataset

    from bridge import Laplace

    model = trained_cnn(300)
    loader = DataLoader(TensorDataset(*digits(count=int(samples))), batch_size=128)
    la = Laplace(model, likelihood="classification", rank=int(rank), method="nystrom", cache="none", progress=False)
    start = time.perf_counter()
    la.fit(loader)
    return {"seconds": time.perf_counter() - start}


def table():
    rows = []
    for samples in SAMPLES:
        found = [alone(__file__, "measure", samples, rank) for rank in RANKS]
        rows.append([f"{samples:,}", *(f"{f['seconds']:.0f} s, {f['peak_gb']:.2f} GB" for f in found)])
    print_table(["samples", *(f"rank {rank}" for rank in RANKS)], rows)


WORKERS = {"measure": measure}

if __name__ == "__main__":
    main(WORKERS, table)
