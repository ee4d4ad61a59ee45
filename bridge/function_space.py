"""Predictions of a Laplace: the posterior over functions, and what is left of it as probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import torch
from tqdm.auto import tqdm

from bridge.dataloader import ToBatch, as_torch_batch
from bridge.model_inputs import by_position, with_keywords
from bridge.options import LinkName, PredictionType, check_generator, one_of, whole
from bridge.peer_options import Jacobians
from bridge.precision import in_float32, in_type_of
from bridge.predictives import Request, distribution, is_regression, jacobians, predict, sampled_outputs
from bridge.sampling import entropies, gaussian_samples, key_of, predicted_variances, to_predictions
from bridge.weight_space import WeightSpace
from jax_core.likelihoods import Gaussian, Heteroscedastic


class FunctionSpace(WeightSpace):
    """What the posterior says about outputs; everything here raises ``RuntimeError`` before ``fit``."""

    def forward(
        self,
        x: Any,
        pred_type: PredictionType = "glm",
        joint: bool = False,
        link_approx: LinkName | None = None,
        n_samples: int | None = None,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Predict with the uncertainty of the weights.

        Args:
            x: A batch of inputs as the model takes them.
            pred_type: ``"glm"``, the network linearised at its weights, exactly; ``"nn"``, the network itself at
                sampled weights, whose predictions are averaged; ``"gp"``, the first, of ``hessian_structure="gp"``.
            joint: For regression: how all outputs of all samples vary together.
            link_approx: Another link than :attr:`link_approx`.
            n_samples: Another number of samples for ``"mc"`` and ``pred_type="nn"``.
            diagonal_output: For regression: variances of single outputs in place of their covariance, as is done by
                itself (with a warning) where the covariance would take more than a gigabyte.
            generator: Of samples; by default the same are drawn in each call.
            **model_kwargs: Further inputs of the model by name, as at ``fit``.

        Returns:
            Probabilities for classification and several labels, in the shape of ``model(x)``; for regression the mean
            in that shape and the covariance ``(B, D, D)`` over a sample's ``D`` flattened outputs (the variances, in
            the shape of ``model(x)``, with ``diagonal_output`` or ``pred_type="nn"``; if joint, the mean ``(B D,)``
            and the covariance ``(B D, B D)``) of the function, without the noise. On ``x``'s device and, if ``x`` is
            floating, in its dtype. Differentiable by torch with ``enable_backprop=True`` alone.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
            ValueError: For an unknown option, or if the shape of ``x`` is not the traced one, or it holds NaN.
            TypeError: For an input that the model does not take.
        """
        link = self.link_approx if link_approx is None else link_approx
        one_of("link_approx", link, LinkName)
        samples = self.n_samples if n_samples is None else n_samples
        whole("n_samples", samples)
        self._check_kind(pred_type, generator)
        key = jax.random.key(self.seed) if generator is None else key_of(generator)
        request = Request(
            pred_type, link, samples, key, diagonal_output, self.logit_temperature, joint, self.enable_backprop
        )
        ready, posterior = self.ready_for(self._inputs(x, model_kwargs)), self.posterior
        result = ready.shown(predict(ready.fit, posterior, ready.batch, request))
        if not (joint and is_regression(ready.fit) and pred_type != "nn"):
            return result
        mean, covariance = result
        return mean.reshape(-1), covariance.reshape(mean.numel(), mean.numel())

    def predictive_distribution(self, x: Any, *, joint: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and exact covariance of the linearised network's outputs (the logits, if it classifies).

        They are not divided by :attr:`logit_temperature`, which belongs to the step from logits to probabilities.

        Args:
            x: A batch of inputs.
            joint: Whether outputs of different examples are related too.

        Returns:
            The mean in the shape of ``model(x)``, and over a sample's ``D`` flattened outputs the covariance
            ``(B, D, D)`` or, if joint, ``(B, D, B, D)``.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
            ValueError: If the shape of ``x`` is not the traced one, or it holds NaN.
        """
        ready, posterior = self.ready_for(x), self.posterior
        backprop = self.enable_backprop
        return ready.shown(distribution(ready.fit, posterior, ready.batch, joint=joint, backprop=backprop))

    def jacobians(self, x: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Derivatives of a sample's ``D`` flattened outputs by the weights that the posterior covers.

        What :meth:`functional_variance` takes; predictions hold a few samples' at a time, and a last layer's never.

        Args:
            x: A batch of inputs.

        Returns:
            Jacobians ``(B, D, P)``, weights as in :attr:`mean`, and the outputs in the shape of ``model(x)``.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
            ValueError: If inputs do not fit, or all these numbers would take more than eight gigabytes.
        """
        ready = self.ready_for(x)
        rows, outputs = jacobians(ready.fit, ready.batch, self.order)
        return rows, ready.shown(outputs)

    def predictive(
        self, x: Any, pred_type: PredictionType = "glm", link_approx: LinkName | None = None, n_samples: int = 100
    ) -> Any:
        """:meth:`forward` with laplace-torch's shorter list of arguments."""
        return self(x, pred_type=pred_type, link_approx=link_approx, n_samples=n_samples)

    def functional_variance_fast(self, x: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each output (the logits, if it classifies), in the shape of ``model(x)``."""
        return self._glm_predictive_distribution(x, diagonal_output=True)

    def _glm_predictive_distribution(
        self, X: Any, joint: bool = False, diagonal_output: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """laplace-torch's private name of :meth:`predictive_distribution`, which libraries around it call."""
        mean, covariance = self.predictive_distribution(X, joint=joint)
        if joint:
            return mean.reshape(-1), covariance.reshape(mean.numel(), mean.numel())
        return mean, covariance.diagonal(dim1=-2, dim2=-1).reshape(mean.shape) if diagonal_output else covariance

    @property
    def backend(self) -> Jacobians:
        """What else of laplace-torch's backend is asked for by name: Jacobians."""
        return Jacobians(self.jacobians)

    def functional_samples(
        self,
        x: Any,
        pred_type: PredictionType = "glm",
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Outputs (the logits, if it classifies) at functions drawn from the posterior, ``(n_samples, *shape)``.

        Args:
            x: A batch of inputs; ``shape`` is that of ``model(x)``.
            pred_type: As in :meth:`forward`.
            n_samples: Draws.
            diagonal_output: With ``"glm"``, leave out how the outputs of a sample vary together.
            generator: Of the noise; by default torch's global one.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
            ValueError: For an unknown option, or inputs that do not fit.
        """
        samples = self._samples(in_float32(x), pred_type, n_samples, diagonal_output, generator)
        return in_type_of(x, samples)

    def _samples(
        self,
        x: Any,
        pred_type: PredictionType,
        n_samples: int,
        diagonal_output: bool,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """:meth:`functional_samples`, of inputs in 32 bits or more: torch has no roots of covariances in 16."""
        self._check_kind(pred_type, generator)
        whole("n_samples", n_samples)
        ready, posterior = self.ready_for(x), self.posterior
        if pred_type == "nn":
            how = {"key": key_of(generator), "num_samples": n_samples, "backprop": self.enable_backprop}
            outputs = sampled_outputs(ready.fit, posterior, ready.batch, **how)
            return torch.stack([ready.shown(one) for one in outputs])
        given = distribution(ready.fit, posterior, ready.batch, joint=False, backprop=self.enable_backprop)
        mean, covariance = ready.shown(given)
        if diagonal_output:
            covariance = torch.diag_embed(torch.diagonal(covariance, dim1=-2, dim2=-1))
        return gaussian_samples(mean, covariance, n_samples, generator)

    def predictive_samples(
        self,
        x: Any,
        pred_type: PredictionType = "glm",
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """:meth:`functional_samples` as predictions: probabilities of each sample, or outputs without noise."""
        samples = self._samples(in_float32(x), pred_type, n_samples, diagonal_output, generator)
        return in_type_of(x, to_predictions(samples, self.fit_result()[0], self.logit_temperature))

    def uncertainty(
        self, x: Any, n_samples: int = 1000, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        r"""Where the uncertainty of a prediction comes from.

        - Classification and several labels, in nats: ``"predictive_entropy"`` $H[\bar p]$, ``"expected_entropy"``
          $\mathbb E\,H[p]$ (of the data) and ``"mutual_information"``, their difference (of the weights; Houlsby et
          al., 2011, arXiv:1112.5745); a label counts by itself.
        - Regression, in squares of the outputs' unit: ``"aleatoric_variance"``, that of the noise, and
          ``"epistemic_variance"``, that of the function; where the network predicts its noise, the former is the
          mean $\mathbb E\,e^s = e^{\bar s + \operatorname{var}(s) / 2}$ and both are of the targets' shape.

        Args:
            x: A batch of inputs.
            n_samples: Draws of the linearised network's outputs behind the entropies.
            generator: Of them; by default the same are drawn in each call.

        Returns:
            By these names, in the shape of ``model(x)``, without the axis of classes.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
            ValueError: For a likelihood whose noise is no number, such as that of counts.
        """
        # differences of entropies are lost in 16 bits
        return in_type_of(x, self._uncertainty(in_float32(x), n_samples, generator))

    def _uncertainty(self, x: Any, n_samples: int, generator: torch.Generator | None) -> dict[str, torch.Tensor]:
        fit = self.fit_result()[0]
        if isinstance(fit.predicted, Heteroscedastic):
            return predicted_variances(*self(x, diagonal_output=True))
        if is_regression(fit):
            if not isinstance(fit.predicted, Gaussian):
                raise ValueError(
                    f"The likelihood {type(fit.predicted).__name__} has no noise to set apart. The variance of the "
                    "function is la(x, diagonal_output=True)[1]."
                )
            variance = self(x, diagonal_output=True)[1]
            noise = torch.as_tensor(self.sigma_noise).to(variance)
            aleatoric = (noise**2).reshape(fit.layout.shape if noise.ndim else ()).expand_as(variance)
            return {"aleatoric_variance": aleatoric.clone(), "epistemic_variance": variance}
        generator = torch.Generator().manual_seed(self.seed) if generator is None else generator
        samples = self.predictive_samples(x, n_samples=n_samples, generator=generator)
        return entropies(samples, fit)

    @torch.no_grad()
    def predict(
        self, loader: Iterable[Any], *, to_batch: ToBatch | None = None, **options: Any
    ) -> tuple[Any, torch.Tensor]:
        """Predictions and targets of a whole set, on the CPU.

        Args:
            loader: Batches as in ``fit``.
            to_batch: As in ``fit``.
            **options: Of :meth:`forward`.

        Returns:
            What :meth:`forward` gives, concatenated over the batches, and the targets.

        Raises:
            ValueError: If the loader is empty, or for ``joint=True``, which relates the samples of one batch alone.
        """
        if options.get("joint"):
            raise ValueError(
                "joint=True relates the samples of one batch. Call la(x, joint=True) on all that belong together."
            )
        reader = self.reading.reader(to_batch)
        predictions, targets = [], []
        for given in tqdm(loader, "Predicting", disable=not self.options.progress, leave=False, delay=1):
            batch = as_torch_batch(given, reader)
            predictions.append(jax.tree.map(lambda leaf: leaf.cpu(), self(batch.input, **options)))
            targets.append(torch.as_tensor(batch.target).cpu())
        if not targets:
            raise ValueError("The loader is empty. Give at least one batch.")
        return jax.tree.map(lambda *parts: torch.cat(parts), *predictions), torch.cat(targets)

    def _check_kind(self, pred_type: PredictionType, generator: torch.Generator | None) -> None:
        one_of("pred_type", pred_type, PredictionType)
        if pred_type == "gp" and self.options.structure != "gp":
            raise ValueError("pred_type='gp' goes with hessian_structure='gp'. Leave it out: 'glm' is the default.")
        check_generator(generator)

    def _inputs(self, x: Any, model_kwargs: dict[str, Any]) -> Any:
        if not model_kwargs:
            return x
        named, template = with_keywords(self.model, x, model_kwargs), self.fit_result()[0].template
        return by_position(self.model, named, len(template.names)) if template.kind == "tuple" else named
