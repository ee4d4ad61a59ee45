"""Lightning's Trainer over a module that holds a Laplace: it predicts under inference_mode."""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace

# Lightning's advice about workers, and of packages it imports
pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
LOADER = DataLoader(TensorDataset(X, Y), batch_size=16)


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Evaluated(lightning.LightningModule):
    """What is tested: a Laplace in the place of a network; fitted here where it is not yet."""

    def __init__(self, la):
        super().__init__()
        self.la = la

    def on_test_start(self):
        if not self.la.is_fitted:
            self.la.fit(LOADER)

    def test_step(self, batch, _):
        self.log("nll", nn.functional.nll_loss(self.la(batch[0]).log(), batch[1]))

    def predict_step(self, batch, _):
        return self.la(batch[0])


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", **{"enable_checkpointing": False}, **quiet, **options)


def laplace(net):
    return Laplace(net, hessian_structure="full", progress=False)


def test_the_trainer_tests_and_predicts_with_a_posterior():
    net = Net()
    trainer(max_epochs=2).fit(net, LOADER)
    la = laplace(net).fit(LOADER)
    probabilities = torch.cat(trainer().predict(Evaluated(la), LOADER))
    torch.testing.assert_close(probabilities, la(X))
    (scores,) = trainer().test(Evaluated(la), LOADER, verbose=False)
    wanted = float(nn.functional.nll_loss(la(X).log(), Y))
    assert scores["nll"] == pytest.approx(wanted, rel=1e-5)


def test_a_fit_under_inference_mode_is_a_fit_outside():
    inside = Evaluated(laplace(Net()))
    trainer().test(inside, LOADER, verbose=False)
    torch.testing.assert_close(inside.la(X), laplace(Net()).fit(LOADER)(X))
    again = laplace(Net())
    with torch.inference_mode():
        made = [(X + 0, Y + 0)]  # tensors that autograd will not take
        again.fit(made)
        again.optimize_prior_precision(val_loader=made)
        assert again(made[0][0]).shape == (40, 3)
        with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode"):
            laplace(Net()).fit(LOADER)


def test_a_checkpoint_of_the_trainer_holds_the_posterior(tmp_path):
    net = Net()
    la = laplace(net).fit(LOADER)
    saving = trainer()
    saving.strategy.connect(Evaluated(la))
    saving.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    again = Evaluated.load_from_checkpoint(tmp_path / "last.ckpt", la=laplace(Net()))
    out = torch.cat(trainer().predict(again, LOADER))
    torch.testing.assert_close(out, la(X))
