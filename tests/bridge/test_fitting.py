"""A fit that stops goes on from its checkpoint, to the same posterior; two batches are held against torch."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace, MismatchError, load, lowers, save
from bridge.tracing.lowering import LOWERINGS
from jax_core.data import checkpoint as checkpoints
from jax_core.gradients import row_stream
from jax_core.gradients.rows import RowPlan
from tests.bridge.dense import fit

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


class Stopping:
    """A loader that fails at a batch, as long as it is told to."""

    def __init__(self, stop, shuffle=False):
        self.stop, self.order = stop, torch.randperm(40) if shuffle else torch.arange(40)

    def __iter__(self):
        for number, part in enumerate(self.order.split(5)):
            if number == self.stop:
                raise ConnectionError("the disk is gone")
            yield X[part], Y[part]


@pytest.fixture(autouse=True)
def at_every_batch(monkeypatch):
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0.0)
    monkeypatch.setattr(row_stream, "plan_rows", lambda *_: RowPlan(8, 8))  # rows of a few batches a block


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def new(**options):
    return Laplace(network(), cache="none", progress=False, **({"rank": 10} | options))


def spread(la):
    return la.predictive_distribution(X[:4])[1]


HOW = [{"hessian_structure": "full"}, {"hessian_structure": "diag"}, {"method": "nystrom"}]
MANY = [
    {"method": "lanczos"},
    {"method": "block_lanczos"},
    {"method": "lobpcg", "rank": 5},
    {"method": "nystrom", "passes": 2},
]


@pytest.mark.parametrize("options", HOW, ids=str)
def test_a_pass_that_stopped_goes_on_to_the_same_posterior(options, tmp_path):
    straight = new(**options).fit(Stopping(None))
    for stop in (3, 6):
        with pytest.raises(ConnectionError):
            new(**options).fit(Stopping(stop), checkpoint=tmp_path)
    state = max(checkpoints._read(tmp_path / name)[1]["count"] for name in ("state-0", "state-1"))
    la = new(**options).fit(Stopping(None), checkpoint=tmp_path)
    after = max(checkpoints._read(tmp_path / name)[1]["count"] for name in ("state-0", "state-1"))
    assert 0 < state < after <= state + 6  # what was there was not done again
    torch.testing.assert_close(spread(la), spread(straight), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(la.fitted.nll, straight.fitted.nll, rtol=1e-6)


@pytest.mark.parametrize("options", MANY, ids=str)
def test_products_that_were_made_are_not_made_again(options, tmp_path, monkeypatch):
    straight = new(**options).fit(Stopping(None))
    new(**options).fit(Stopping(None), checkpoint=tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("product-*"))
    for name in kept[len(kept) // 2 :]:
        (tmp_path / name).unlink()
    made = []
    keep = checkpoints.Checkpoint.keep_product
    monkeypatch.setattr(checkpoints.Checkpoint, "keep_product", lambda self, *a: (made.append(a[0]), keep(self, *a)))
    la = new(**options).fit(Stopping(None), checkpoint=tmp_path)
    assert made == list(range(len(kept) // 2, len(kept)))
    torch.testing.assert_close(spread(la), spread(straight), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(la.fitted.nll, straight.fitted.nll, rtol=1e-6)


@pytest.mark.parametrize("structure", ["kron", "ekfac", "kron_lowrank"])
def test_a_structure_of_two_passes_goes_on_in_either(structure, tmp_path):
    options = {"hessian_structure": structure}
    straight = new(**options).fit(Stopping(None))
    for stop in (3, 6):
        with pytest.raises(ConnectionError):
            new(**options).fit(Stopping(stop), checkpoint=tmp_path)
    la = new(**options).fit(Stopping(None), checkpoint=tmp_path)
    torch.testing.assert_close(spread(la), spread(straight), rtol=1e-6, atol=1e-8)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} <= {"both factors", "turned"}


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path):
    low = {"hessian_structure": "lowrank"}
    straight = new(**low).fit(Stopping(None))
    with pytest.raises(ConnectionError):
        new(**low).fit(Stopping(6), checkpoint=tmp_path)
    newest = max(tmp_path.glob("state-*"), key=lambda path: checkpoints._read(path)[1]["count"])
    content = newest.read_bytes()
    for damaged in (content[:-7], content[:-7] + bytes([content[-7] ^ 1]) + content[-6:], b""):
        newest.write_bytes(damaged)
        torch.testing.assert_close(spread(new(**low).fit(Stopping(None), checkpoint=tmp_path)), spread(straight))


def test_other_data_and_other_fits_are_noticed(tmp_path):
    how = {"hessian_structure": "full"}  # a state after each batch
    with pytest.raises(ConnectionError):
        new(**how).fit(Stopping(6), checkpoint=tmp_path)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match=r"not those that the loader shows now.*starts from its beginning"):
        la = new(**how).fit(Stopping(None, shuffle=True), checkpoint=tmp_path)
    torch.testing.assert_close(spread(la), spread(new(**how).fit(Stopping(None))), rtol=1e-4, atol=1e-6)
    for other in (new(rank=9), new(seed=1), Laplace(nn.Linear(4, 3), rank=10, cache="none", progress=False)):
        with pytest.raises(ValueError, match=r"state of another fit.*empty folder"):
            other.fit(Stopping(None), checkpoint=tmp_path)


def test_a_finished_fit_is_read_from_its_checkpoint(tmp_path):
    first = new().fit(Stopping(None), checkpoint=tmp_path)
    again = new().fit(Stopping(None), checkpoint=tmp_path)
    assert torch.equal(spread(first), spread(again))


KILLED = """
    import sys, time, torch
    from torch import nn
    from bridge import Laplace
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(200, 4)
    class Slow:
        def __iter__(self):
            for part in x.split(5):
                time.sleep(0.05)
                print("batch", flush=True)
                yield part, part.argmax(1) % 3
    from jax_core.data import checkpoint
    from jax_core.gradients import row_stream, rows
    checkpoint._SECONDS, row_stream.plan_rows = 0.0, lambda *_: rows.RowPlan(8, 8)
    la = Laplace(model, rank=10, method="nystrom", cache="none", progress=False).fit(Slow(), checkpoint=sys.argv[1])
    print(la(x[:3]).tolist(), flush=True)
"""


def test_a_process_killed_at_any_moment_ends_in_the_same_posterior(tmp_path):
    def start(folder):
        code = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), str(folder)]
        root = Path(__file__).resolve().parents[2]
        return subprocess.Popen(
            code, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": "."}
        )

    straight = start(tmp_path / "straight").communicate()[0].splitlines()[-1]
    for batches in (9, 30):
        process = start(tmp_path / "killed")
        for _ in range(batches):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.05)
    found = start(tmp_path / "killed").communicate()[0].splitlines()[-1]
    np.testing.assert_allclose(eval(found), eval(straight), atol=1e-6)


def test_a_trace_that_goes_wrong_on_later_data_is_found(monkeypatch):
    """A lowering that is right where the example lies, and wrong elsewhere."""
    operator = torch.ops.aten.tanh.default
    right = LOWERINGS[operator]
    before = dict(LOWERINGS)
    try:
        lowers(operator)(lambda x: jax.numpy.where(abs(x) > 2.5, x, right(x)))
        near, far = X[:8] * 0.01, X * 50
        loader = [(near, Y[:8]), (far, Y), (far, Y)]
        with pytest.raises(MismatchError, match=r"batch [12] of the loader.*loss is .*torch's .*bridge.explain"):
            Laplace(network(), rank=5, progress=False).fit(loader)
    finally:
        LOWERINGS.clear()
        LOWERINGS.update(before)


def test_iterators_are_read_from_their_first_batch_on():
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    la = Laplace(network(), hessian_structure="full", progress=False).fit(iter(loader))
    assert la.fitted.num_samples == 40
    torch.testing.assert_close(la(X), fit(network(), X, Y)(X))


class Watched(nn.Module):
    """Counts its calls and keeps what it saw last, as hooks and caches do."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls, self.log = nn.Linear(4, 3), 0, []
        self.register_buffer("number", torch.tensor(0))

    def forward(self, x):
        self.number += 1
        self.calls, self.last = self.calls + 1, x
        self.log.append(len(self.log))
        return self.linear(x)


@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_what_a_forward_counts_and_keeps_is_as_before_a_fit(subset):
    model = Watched()
    la = Laplace(model, "classification", subset, "diag", progress=False).fit([(X, Y), (X[:5], Y[:5])])
    la(X)
    assert (model.number, model.calls, model.log, hasattr(model, "last")) == (0, 0, [], False)


class Whole(nn.Module):
    """A model of indices, which torch takes in 64 bits alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 3)

    def forward(self, i):
        return self.linear(nn.functional.one_hot(i, 7).float().sum(1))


@pytest.mark.parametrize("as_inputs", [lambda i: i, lambda i: (i,), lambda i: {"i": i}])
def test_indices_reach_torch_in_64_bits(tmp_path, as_inputs):
    i, model = torch.randint(0, 7, (40, 5)), Whole()
    inputs = as_inputs(i)
    batch = {**inputs, "labels": Y} if isinstance(inputs, dict) else (inputs, Y)
    la = Laplace(model, hessian_structure="diag", progress=False).fit([batch])
    save(la, tmp_path / "file")
    assert torch.equal(load(tmp_path / "file", Laplace(model, hessian_structure="diag"))(inputs), la(inputs))


@pytest.mark.parametrize("part", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_wrapped_part_of_a_model_is_looked_through(part):
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    wrapped = nn.Sequential(part(bare[0]), *bare[1:])
    torch.testing.assert_close(fit(wrapped, X, Y)(X), fit(bare, X, Y)(X))


def test_an_embedding_with_sparse_gradients_is_that_with_dense_ones():
    torch.manual_seed(0)
    i = torch.randint(0, 6, (40, 5))
    sparse = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Flatten(), nn.Linear(20, 3))
    dense = copy.deepcopy(sparse)
    dense[0].sparse = False
    torch.testing.assert_close(fit(sparse, i, Y)(i), fit(dense, i, Y)(i))
