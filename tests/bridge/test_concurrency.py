"""Threads beside each other and processes after each other get the same numbers."""

import subprocess
import sys
import threading
from pathlib import Path

import torch
from torch import nn

from tests.bridge.dense import fit

ROOT = Path(__file__).resolve().parents[2]
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3
SAME = """
import torch
from torch import nn
from tests.bridge.dense import fit
torch.manual_seed(0)
x, y = torch.randn(16, 4), torch.arange(16) % 3
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
la = fit(model, x, y, structure="lowrank", rank=8, method="nystrom", link_approx="mc")
la.optimize_prior_precision(grid=[0.1, 1.0, 10.0])
print(la(x).flatten().view(torch.int32).tolist(), la(x, pred_type="nn").flatten().view(torch.int32).tolist())
"""


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_two_threads_give_what_one_after_the_other_gives():
    def work(seed, models, results):
        how = ({"structure": "full"}, {"structure": "lowrank", "rank": 8, "method": "nystrom"})[seed]
        la = fit(models[seed], X, Y, cache="none", **how)
        results[seed] = la(X), la(X, pred_type="nn", n_samples=5)

    models = [network(seed) for seed in (0, 1)]
    alone, together = {}, {}
    for seed in (0, 1):
        work(seed, models, alone)
    threads = [threading.Thread(target=work, args=(seed, models, together)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        for a, b in zip(alone[seed], together[seed], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_same_seed_gives_the_same_bits_in_two_processes():
    runs = [subprocess.Popen([sys.executable, "-c", SAME], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (run.communicate()[0] for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert first == second
    assert len(first) > 100
