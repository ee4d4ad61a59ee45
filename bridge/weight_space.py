"""The posterior over weights as its owner meets it: torch tensors, in the order of ``model.parameters()``."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import torch

from bridge.evidence import differentiable_evidence
from bridge.hyperparameters import in_core, per_parameter
from bridge.keeping import KeptLaplace
from bridge.options import check_generator, whole
from bridge.parameter_order import ParameterOrder
from bridge.placement import device_of
from bridge.tensors import to_jax, to_torch
from bridge.tracing.checks import unwrap
from bridge.weight_matrix import CurvatureMatrix, PosteriorPrecision, WeightMatrix, check_dense, each
from jax_core.data.trees import flattener
from jax_core.likelihoods import Gaussian
from jax_core.operators import Diagonal
from jax_core.posterior import Posterior, prior_vector

Matrix = TypeVar("Matrix", bound=WeightMatrix)


class WeightSpace(KeptLaplace):
    """What is known of the Gaussian over weights.

    Before ``fit`` that is the prior: :attr:`mean`, densities, precisions and determinants are its own, and :attr:`H` is
    zero. They stay what they are while the model is trained on, so that training can use them (Ritter et al., 2018,
    arXiv:1805.07810); everything else raises ``RuntimeError`` before ``fit`` and once the weights have changed since.
    """

    @property
    def mean(self) -> torch.Tensor:
        """The trained weights that the posterior covers, flattened ``(P,)``; around a subnetwork all of them."""
        return self._whole(self._covered_mean)

    @property
    def _covered_mean(self) -> torch.Tensor:
        density = self._density
        return self._tensor(flattener(density.mean)[0](density.mean))

    @property
    def _density(self) -> Posterior:
        """The posterior, also while training goes on from it, or before ``fit`` the prior."""
        if self.is_fitted:  # the other weights around a subnetwork are the model's own, so that must be as it was
            return self.fit_result(check_weights=self.subset.kind == "subnetwork")[1]
        order = self.order
        dtype = jnp.float64 if self.runs_wide() else jnp.float32
        centre = jnp.broadcast_to(jnp.asarray(self.core_prior_mean, dtype), order.size)
        prior = prior_vector(in_core(per_parameter(self._hyper.prior_precision, order), order.to_core), centre)
        return Posterior.create(centre, Diagonal(jnp.zeros_like(centre)), prior)

    def _whole(self, covered: torch.Tensor) -> torch.Tensor:
        """Values ``(..., P)`` of a subnetwork's weights within all weights that may be trained; others as they are."""
        if self.subset.kind != "subnetwork":
            return covered
        trained = [p.detach().flatten().to(covered) for p in self.model.parameters() if p.requires_grad]
        whole = torch.cat(trained).expand(*covered.shape[:-1], -1).clone()
        whole[..., list(self.subset.indices)] = covered
        return whole

    @property
    def n_params(self) -> int:
        """Weights of :attr:`mean`."""
        return ParameterOrder.of(self.model).size if self.subset.kind == "subnetwork" else self.order.size

    @property
    def n_params_subnet(self) -> int:
        """Weights that the posterior covers."""
        return self.order.size

    @property
    def n_layers(self) -> int:
        """Parameter tensors that the posterior covers: as many numbers has a prior precision per layer."""
        return len(self.order.names)

    @property
    def n_outputs(self) -> int:
        """Outputs of one sample: its classes, or the length of the last axis."""
        layout = self.fit_result()[0].layout
        return layout.core_shape[-1] if layout.core_shape else 1

    @property
    def n_data(self) -> int:
        """Training samples that the curvature stands for."""
        return self.fitted.num_total_samples

    def sample(self, n_samples: int = 100, generator: torch.Generator | None = None) -> torch.Tensor:
        r"""Weights drawn from $\mathcal N(\theta^*, \Sigma)$, ``(n_samples, P)``, laid out like :attr:`mean`.

        Args:
            n_samples: Draws.
            generator: Of the noise; by default torch's global one, so that ``torch.manual_seed`` repeats it.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
            TypeError: For another generator than torch's.
        """
        whole("n_samples", n_samples)
        check_generator(generator)
        posterior = self.posterior
        mean = self._covered_mean
        device = mean.device if generator is None else generator.device
        noise = torch.randn(n_samples, self.order.size, generator=generator, dtype=mean.dtype, device=device)
        scaled = each(Posterior.scale_flat, posterior, to_jax(noise.cpu()).astype(posterior.prior_precision.dtype))
        return self._whole(mean + self._tensor(scaled))

    def samples_as_state_dicts(
        self, n_samples: int = 100, generator: torch.Generator | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Samples as state dicts of the model, each whole: ``model.load_state_dict`` takes it.

        Weights that the posterior does not cover, and buffers, are the model's own.
        """
        model = unwrap(self.model)
        tied = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
        wanted = {id(p): name for name, p in model.named_parameters()}
        order = ParameterOrder.of(model) if self.subset.kind == "subnetwork" else self.order
        found = []
        for sample in self.sample(n_samples, generator):
            parts = dict(zip(order.names, sample.split(list(order.sizes)), strict=True))
            state = {key: value.detach().clone() for key, value in model.state_dict().items()}
            for name in state:
                part = parts.get(wanted.get(tied.get(name, 0), ""))
                if part is not None:
                    state[name] = part.reshape(state[name].shape).to(state[name])
            found.append(state)
        return found

    def square_norm(self, value: torch.Tensor) -> torch.Tensor:
        r"""$(\theta - \theta^*)^\top \Sigma^{-1} (\theta - \theta^*)$ of weights ``(..., P)``.

        Around a subnetwork, of its weights or of all, of which its own count. Torch can differentiate it once.
        """
        if self.subset.kind == "subnetwork" and isinstance(value, torch.Tensor) and value.shape[-1:] == self.mean.shape:
            value = value[..., list(self.subset.indices)]
        rows, posterior = self._core_rows("value", value), self._density
        offset = rows - flattener(posterior.mean)[0](posterior.mean)
        centred = self._tensor(offset)
        product = self._tensor(
            each(Posterior.precision_flat, posterior, offset.reshape(-1, offset.shape[-1])).reshape(offset.shape)
        )
        norm = (centred * product).sum(-1)
        if not (value.requires_grad and torch.is_grad_enabled()):
            return norm
        moving = value - value.detach()  # zero, with the slope that the norm has there
        return norm + 2 * (moving.to(product) * product).sum(-1)

    def log_prob(self, value: torch.Tensor, normalized: bool = True) -> torch.Tensor:
        r"""$\log \mathcal N(\theta; \theta^*, \Sigma)$ of weights ``(..., P)``, or without its constant."""
        quadratic = -0.5 * self.square_norm(value)
        if not normalized:
            return quadratic
        return quadratic + 0.5 * (self.log_det_posterior_precision - self.order.size * math.log(2 * math.pi))

    @property
    def prior_precision_diag(self) -> torch.Tensor:
        """The prior precision of each weight, ``(P,)``."""
        return self._tensor(jnp.broadcast_to(self._density.prior_precision, self.order.size))

    @property
    def posterior_precision(self) -> torch.Tensor | PosteriorPrecision:
        r"""$\Sigma^{-1}$: a matrix ``(P, P)`` of ``"full"``, a vector ``(P,)`` of ``"diag"``.

        Other structures give a :class:`~bridge.weight_matrix.PosteriorPrecision`, which multiplies vectors and
        writes the matrix out where it is asked to; a low rank unpacks as ``(U, l), d``. That of ``"diag"`` can be the
        ``prior_precision`` of a next Laplace; of the others, ``fit(loader, override=False)`` adds data to a posterior.
        """
        return self._in_structure(PosteriorPrecision(*self._as_values, self._density))

    @property
    def H(self) -> torch.Tensor | CurvatureMatrix:
        r"""The curvature $G$ of the data, without noise, temperature and prior; laid out like the precision.

        It is $(\Sigma^{-1} - D)\, \sigma^2 T$, a matrix ``(P, P)`` of ``"full"``, a vector ``(P,)`` of ``"diag"``, and
        of other structures a :class:`~bridge.weight_matrix.CurvatureMatrix`.
        """
        fit = self.fit_result(check_weights=False)[0] if self.is_fitted else None
        curvature = self._density.relative_curvature if fit is None else fit.fitted.curvature
        return self._in_structure(CurvatureMatrix(*self._as_values, curvature))

    @property
    def _as_values(self) -> tuple[ParameterOrder, torch.device, torch.dtype]:
        """How matrices over the weights give their results."""
        mean = self._covered_mean
        return self.order, mean.device, mean.dtype

    def _in_structure(self, matrix: Matrix) -> torch.Tensor | Matrix:
        if self.options.structure == "full":
            return matrix.to_matrix()
        return matrix.diagonal() if self.options.structure == "diag" else matrix

    @property
    def posterior_covariance(self) -> torch.Tensor:
        r"""$\Sigma$ as a matrix ``(P, P)``.

        Raises:
            ValueError: If it would take more than two gigabytes.
        """
        check_dense(self.order.size, "functional_variance, posterior_variance or sample")
        return PosteriorPrecision(*self._as_values, self.posterior).to_matrix(exponent=-1)

    @property
    def posterior_scale(self) -> torch.Tensor:
        r"""A root of $\Sigma$: its Cholesky factor ``(P, P)``, or of ``"diag"`` the standard deviations ``(P,)``."""
        if self.options.structure == "diag":
            return self.posterior_variance.sqrt()
        return torch.linalg.cholesky(self.posterior_covariance)

    @property
    def posterior_variance(self) -> torch.Tensor:
        r"""The diagonal of $\Sigma$, ``(P,)``."""
        return self._tensor(self.posterior.variances())

    @property
    def scatter(self) -> torch.Tensor:
        r"""$(\theta^* - \mu_0)^\top D (\theta^* - \mu_0)$ with the prior's mean and precision."""
        return self._like(self._density.scatter(self.core_prior_mean))

    @property
    def loss(self) -> torch.Tensor:
        """What the network loses on the training data in all: negative log-likelihoods, of a regression at noise 1."""
        return self._like(self.fit_result(check_weights=False)[0].fitted.nll if self.is_fitted else 0.0)

    @property
    def log_likelihood(self) -> torch.Tensor:
        r"""$\log p(\mathcal D \mid \theta^*)$ over the temperature."""
        return self._like(self.evidence().fit)

    @property
    def log_det_ratio(self) -> torch.Tensor:
        r"""$\log\det\Sigma^{-1} - \log\det D$."""
        return self._like(self._density.log_det_ratio())

    @property
    def log_det_prior_precision(self) -> torch.Tensor:
        r"""$\log\det D$."""
        return self.prior_precision_diag.log().sum()

    @property
    def log_det_posterior_precision(self) -> torch.Tensor:
        r"""$\log\det\Sigma^{-1}$."""
        return self.log_det_prior_precision + self.log_det_ratio

    def log_marginal_likelihood(self, prior_precision: Any = None, sigma_noise: Any = None) -> torch.Tensor:
        """The Laplace approximation of the log evidence of the training data.

        Args:
            prior_precision: Set before, if given; a tensor that requires a gradient gets one.
            sigma_noise: Likewise, of a regression with one noise for all outputs.

        Raises:
            RuntimeError: Before ``fit``, or if the model's weights have changed since.
            ValueError: For values that could not be set either.
        """
        self.fit_result()
        if prior_precision is not None:
            self.prior_precision = prior_precision
        if sigma_noise is not None:
            if not isinstance(self.loss_fn.likelihood, Gaussian):
                raise ValueError("sigma_noise belongs to regression: this likelihood has none to change.")
            self.sigma_noise = sigma_noise
        moving = [v for v in (prior_precision, sigma_noise) if isinstance(v, torch.Tensor) and v.requires_grad]
        if moving and torch.is_grad_enabled():
            return differentiable_evidence(self, prior_precision, sigma_noise)
        return self._like(self.evidence().total)

    def functional_variance(self, Js: torch.Tensor) -> torch.Tensor:
        r"""$J_i \Sigma J_i^\top$ of Jacobians ``(B, D, P)``, as ``(B, D, D)``."""
        return self._like(self.posterior.output_covariance(self._core_rows("Js", Js)))

    def functional_covariance(self, Js: torch.Tensor) -> torch.Tensor:
        r"""$J \Sigma J^\top$ of Jacobians ``(B, D, P)`` or ``(B D, P)``, over all outputs of all samples together."""
        rows = self._core_rows("Js", Js)
        return self._like(self.posterior.output_covariance(rows.reshape(-1, rows.shape[-1])))

    def _core_rows(self, name: str, value: torch.Tensor) -> jax.Array:
        """Vectors over the weights in the core's order."""
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape[-1] != self.order.size:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name} of shape {shape}: the last axis runs over the {self.order.size} weights covered.")
        like = self._density.prior_precision
        return jax.device_put(to_jax(value.detach().cpu()[..., self.order.core_places]), like.device).astype(like.dtype)

    def _tensor(self, flat: Any) -> torch.Tensor:
        """Values per weight, on the last axis, as a tensor in torch's order."""
        return self._like(flat)[..., self.order.places_in_core]

    def _like(self, value: Any) -> torch.Tensor:
        return to_torch(jnp.asarray(value)).to(device_of(self.model))
