"""Rank 200 from all 60,000 training digits, through a torch DataLoader with transforms, against laplax's rank 100.

Ours is measured whole; laplax makes a pass a vector, so five of its products over a tenth of the data are timed and
multiplied. Needs MNIST under data/ (else the packaged digits are repeated).
"""

import time

from common import alone, digits, jax_cnn, main, print_table, seconds, trained_cnn

TENTH = 6_000


class Counted:
    """Digits as a dataset that prepares each image when it is asked for, as torchvision's transforms do."""

    def __init__(self, count):
        images, self.labels = digits(count=count)
        self.images = ((images * 0.3081 + 0.1307) * 255).round().byte().numpy()[:, 0]
        self.reads = 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        from PIL import Image
        from torchvision.transforms import functional

        self.reads += 1
        image = functional.to_tensor(Image.fromarray(self.images[i]))
        return functional.normalize(image, (0.1307,), (0.3081,)), int(self.labels[i])


def ours(count="60000"):
    from torch.utils.data import DataLoader

    from bridge import Laplace

    model, data = trained_cnn(300), Counted(int(count))
    la = Laplace(model, likelihood="classification", rank=200, progress=False)
    start = time.perf_counter()
    la.fit(DataLoader(data, batch_size=128, shuffle=True))
    return {"seconds": time.perf_counter() - start, "passes": data.reads / len(data)}


def laplax():
    import jax
    import jax.numpy as jnp
    from laplax.curv.ggn import create_ggn_mv_without_data
    from laplax.util.loader import DataLoaderMV, reduce_add
    from torch.utils.data import DataLoader

    model_fn, params = jax_cnn(trained_cnn(300))
    loader = DataLoader(Counted(TENTH), batch_size=128, shuffle=True, drop_last=True)
    mv = create_ggn_mv_without_data(model_fn, params, loss_fn="cross_entropy", factor=1.0)

    def as_arrays(batch):
        return {"input": batch[0].numpy(), "target": batch[1].numpy()}

    product = DataLoaderMV(jax.jit(mv), loader, transform=as_arrays, reduce=reduce_add)
    vector = jax.tree.map(jnp.ones_like, params)
    jax.block_until_ready(product(vector))
    five = seconds(lambda: [jax.block_until_ready(product(vector)) for _ in range(5)])
    return {"seconds": five / 5 * 10 * 100, "passes": 100.0}


def table():
    found, peer = alone(__file__, "ours"), alone(__file__, "laplax")
    rows = [
        [name, f"{f['seconds']:.0f}", f"{f['passes']:.2f}", f"{f['peak_gb']:.2f}"]
        for name, f in (("ours, rank 200", found), ("laplax, rank 100 (from five products over a tenth)", peer))
    ]
    print_table(["60,000 digits", "seconds", "passes", "peak memory (GB)"], rows)
    print(f"\n{peer['seconds'] / found['seconds']:.0f} times faster")


WORKERS = {"ours": ours, "laplax": laplax}

if __name__ == "__main__":
    main(WORKERS, table)
