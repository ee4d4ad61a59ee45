"""A Laplace inside an estimator of scikit-learn, as a user would wrap it."""

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibrationDisplay, calibration_curve
from sklearn.datasets import make_moons
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace


class LaplaceClassifier(ClassifierMixin, BaseEstimator):
    def __init__(self, width=8, prior_precision=1.0, epochs=60):
        self.width, self.prior_precision, self.epochs = width, prior_precision, epochs

    def fit(self, X, y):
        torch.manual_seed(0)
        self.classes_ = np.unique(y)
        inputs, targets = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
        model = nn.Sequential(nn.Linear(X.shape[1], self.width), nn.Tanh(), nn.Linear(self.width, len(self.classes_)))
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(self.epochs):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        la = Laplace(model, hessian_structure="full", prior_precision=self.prior_precision, progress=False)
        self.la_ = la.fit(DataLoader(TensorDataset(inputs, targets), batch_size=64))
        return self

    def predict_proba(self, X):
        return self.la_(torch.as_tensor(X, dtype=torch.float32)).numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(1)]


X, Y = make_moons(120, noise=0.2, random_state=0)


def test_cross_validation_and_calibration_take_the_estimator():
    probabilities = cross_val_predict(LaplaceClassifier(), X, Y, cv=3, method="predict_proba")
    assert probabilities.shape == (120, 2) and np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert log_loss(Y, probabilities) < np.log(2)
    fitted = LaplaceClassifier().fit(X, Y)
    shown = CalibrationDisplay.from_estimator(fitted, X, Y, n_bins=4)
    np.testing.assert_allclose(shown.prob_true, calibration_curve(Y, fitted.predict_proba(X)[:, 1], n_bins=4)[0])


def test_a_grid_search_chooses_among_priors():
    search = GridSearchCV(LaplaceClassifier(), {"prior_precision": [0.1, 1.0]}, cv=2, scoring="neg_log_loss")
    search.fit(X, Y)
    assert search.best_params_["prior_precision"] in (0.1, 1.0)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
