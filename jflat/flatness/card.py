"""The flatness card of one solution: every measure of flatness, with its error and its status, from one call.

A pure function, so `jax.jit(jax.vmap(...))` over stacked parameters measures many solutions in one program:

    card_fn = functools.partial(flatness_card, loss_fn, metric_fn, beta=1e4)
    cards = jax.jit(jax.vmap(card_fn, in_axes=(0, None, None)))(stacked_params, batches, key)

With one key for all solutions they meet the same noise, so that their differences are better determined than their
values. Under `vmap` the loops with a stopping rule run as long as their slowest member; `jax.lax.map` in place of
`vmap` avoids that, and holds the memory of one solution.

Cost in gradient evaluations over the data (a metric is 1/3 of one, a Hessian product 1.4, or 1.9 for `Batches`), by
default: local energy 270; the two sharpnesses up to 101 each, usually 10 to 40; Hessian 100 and up; local entropy
7,208, or 0 with `beta=None`, which leaves it out. It is the last that counts: cut `num_chains`, `num_nodes` and the
steps first. Measured on 400 digits, an MLP of 4,810 parameters and two CPU cores: 2.4 s, as long as 8,000 gradients,
and 17 s to compile.

For a network with `lax` convolutions on CPU, such as `flax.linen.Conv`, call it as it stands, without `jit` and `vmap`:
its loops over gradients are then stepped from the host, ten times faster than in a program (`loop`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check, explain, tree
from jflat.data import Batches
from jflat.flatness.hessian_summary import HessianSummary, hessian_summary
from jflat.flatness.local_energy import LocalEnergyResult, local_energy
from jflat.flatness.local_entropy import LocalEntropyResult, local_entropy
from jflat.flatness.objective import objective
from jflat.flatness.sharpness import SharpnessResult, sharpness

__all__ = ["FlatnessCard", "flatness_card", "summary"]

PyTree = Any


class FlatnessCard(NamedTuple):
    """What is known of the flatness of one solution; each part carries its own error and status."""

    loss: jax.Array
    """(): L(w)."""
    metric: jax.Array
    """(): E(w)."""
    gradient_norm: jax.Array
    """(): |grad L(w)|: how far from stationary the point is, on which all readings as "flatness of a minimum" rest."""
    local_energy: LocalEnergyResult
    """Of the metric."""
    sharpness: SharpnessResult
    """In the ball |eps| <= rho; `sam_value` is SAM's."""
    adaptive_sharpness: SharpnessResult
    """In the ball |eps / (|w| + eta)| <= adaptive_rho."""
    hessian: HessianSummary
    """Largest eigenvalue and trace."""
    local_entropy: LocalEntropyResult | None
    """In the window of standard deviation 1/sqrt(beta gamma), or None where it was left out."""
    status: jax.Array
    """int32: COMPLETED if every part succeeded, else the largest of their codes."""


def flatness_card(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    metric_fn: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    batches: PyTree | Batches,
    key: jax.Array,
    *,
    sigmas: Sequence[float] | np.ndarray | jax.Array = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    num_samples: int = 100,
    noise: str = "multiplicative",
    mask: tree.Mask | None = None,
    rho: float | jax.Array = 0.05,
    adaptive_rho: float | jax.Array = 0.5,
    eta: float | jax.Array = 0.0,
    max_ascent_steps: int = 100,
    num_probes: int = 32,
    gamma: float | jax.Array = 1.0,
    beta: float | jax.Array | None = 1e4,
    num_steps: int = 12,
    burn_in: int = 8,
    num_leapfrog: int = 5,
    num_chains: int = 8,
    num_nodes: int = 8,
    chunk_size: int | None = None,
    loop: str = "auto",
) -> FlatnessCard:
    """Measure one solution: loss, local energy, sharpness, curvature and local entropy, with errors and statuses.

    Args:
      loss_fn: (params, batch) -> scalar L, the mean per sample; twice differentiable, batch statistics frozen.
      metric_fn: (params, batch) -> scalar E, a mean per sample for the local energy: usually the error rate.
      params: w, a pytree of real floating-point arrays.
      batches: the training set: one batch, or a `jflat.data.Batches`.
      key: typed PRNG key; the same one for all solutions that are to be compared.
      sigmas, num_samples, noise, mask: of `local_energy`.
      rho, adaptive_rho, eta, max_ascent_steps: of the two `sharpness`.
      num_probes: of the trace in `hessian_summary`.
      gamma, beta, num_steps, burn_in, num_leapfrog, num_chains, num_nodes: of `local_entropy`; its window is 0.01
        wide in each weight by default. `beta=None` leaves it out.
      chunk_size: draws of the local energy, and chains of the local entropy, evaluated at once; None is one by one.
      loop: of `sharpness` and `local_entropy`; the Hessian's parts choose for themselves.

    Returns:
      A `FlatnessCard`.

    Raises:
      ValueError: if an argument is out of range or a function returns no real scalar.

    Accuracy: that of the parts. A part that fails says so in its own status and leaves the others untouched.

    Cost: see the module; the memory is that of the largest part.

    Example: L = E = (1/2) sum_i a_i w_i^2 at its minimum.

    >>> loss_fn = lambda w, a: 0.5 * jnp.sum(a * w**2)
    >>> a = jnp.array([4.0, 1.0])
    >>> card_fn = jax.jit(lambda w, key: flatness_card(loss_fn, loss_fn, w, a, key, beta=None))
    >>> card = card_fn(jnp.zeros(2), jax.random.key(0))
    >>> round(float(card.sharpness.value), 5), round(float(card.hessian.top_eigenvalue), 4), int(card.status)
    (0.005, 4.0, 2)
    """
    check.require_floating("flatness_card", "params", params)
    energy_key, hessian_key, entropy_key = jax.random.split(key, 3)
    goal, point = objective("flatness_card", loss_fn, params, batches)
    loop = goal.choose_loop(loop, point, key)
    loss, gradient = goal.value_and_gradient(point, loop=loop)
    energy = local_energy(
        metric_fn,
        params,
        batches,
        energy_key,
        sigmas=sigmas,
        num_samples=num_samples,
        noise=noise,
        mask=mask,
        chunk_size=chunk_size,
    )
    ball = sharpness(loss_fn, params, batches, rho=rho, max_steps=max_ascent_steps, loop=loop)
    adaptive_ball = sharpness(
        loss_fn,
        params,
        batches,
        rho=adaptive_rho,
        is_adaptive=True,
        eta=eta,
        max_steps=max_ascent_steps,
        loop=loop,
    )
    curvature = hessian_summary(loss_fn, params, batches, hessian_key, num_probes=num_probes)
    entropy = None
    if beta is not None:
        entropy = local_entropy(
            loss_fn,
            params,
            batches,
            entropy_key,
            gamma=gamma,
            beta=beta,
            num_steps=num_steps,
            burn_in=burn_in,
            num_leapfrog=num_leapfrog,
            num_chains=num_chains,
            num_nodes=num_nodes,
            chunk_size=chunk_size,
            loop=loop,
        )
    codes = [energy.status, ball.status, adaptive_ball.status, curvature.status]
    if entropy is not None:
        codes.append(entropy.status)
    return FlatnessCard(
        loss=loss,
        metric=energy.reference,
        gradient_norm=tree.norm(gradient),
        local_energy=energy,
        sharpness=ball,
        adaptive_sharpness=adaptive_ball,
        hessian=curvature,
        local_entropy=entropy,
        status=jnp.max(jnp.stack(codes)),
    )


def summary(card: FlatnessCard) -> str:
    """The card of one solution as a table, value +- standard error, with the parts that failed named (host only).

    Args:
      card: of one solution; take one of a batch with `jax.tree.map(lambda x: x[i], cards)`.

    Raises:
      ValueError: for a batch of cards.

    Example: 0.5 |w|^2 in one dimension.

    >>> loss_fn = lambda w, _: 0.5 * jnp.sum(w**2)
    >>> options = dict(sigmas=[0.0], num_samples=2, beta=None)
    >>> card = flatness_card(loss_fn, loss_fn, jnp.ones(1), None, jax.random.key(0), **options)
    >>> print(summary(card))
    loss                               0.5
    metric                             0.5
    gradient norm                      1
    local energy, sigma = 0            0 +- 0
    sharpness                          0.05125
      SAM's first-order value          0.05125
    adaptive sharpness                 0.625
      ASAM's first-order value         0.625
    largest Hessian eigenvalue         1 (residual 0)
    Hessian trace                      1 +- 0
    Hessian trace / P                  1 +- 0
    status                             completed: ...
    """
    shape = np.shape(card.loss)
    rule = "must be one solution's, not a batch; take one with jax.tree.map(lambda x: x[i], cards)"
    check.require(shape == (), "summary", "card", rule, f"a batch of shape {shape}")
    energy, curvature, entropy = card.local_energy, card.hessian, card.local_entropy
    size = tree.size(card.sharpness.perturbation)
    rows = [
        ("loss", _number(card.loss)),
        ("metric", _number(card.metric)),
        ("gradient norm", _number(card.gradient_norm)),
        *(
            (f"local energy, sigma = {_number(sigma)}", f"{_number(mean)} +- {_number(stderr)}")
            for sigma, mean, stderr in zip(energy.sigmas, energy.mean, energy.stderr, strict=True)
        ),
        ("sharpness", _number(card.sharpness.value)),
        ("  SAM's first-order value", _number(card.sharpness.sam_value)),
        ("adaptive sharpness", _number(card.adaptive_sharpness.value)),
        ("  ASAM's first-order value", _number(card.adaptive_sharpness.sam_value)),
        (
            "largest Hessian eigenvalue",
            f"{_number(curvature.top_eigenvalue)} (residual {_number(curvature.top_residual)})",
        ),
        ("Hessian trace", f"{_number(curvature.trace)} +- {_number(curvature.trace_stderr)}"),
        (
            "Hessian trace / P",
            f"{_number(curvature.trace_per_parameter)} +- {_number(curvature.trace_stderr / size)}",
        ),
    ]
    parts: dict[str, Any] = {
        "local energy": energy,
        "sharpness": card.sharpness,
        "adaptive sharpness": card.adaptive_sharpness,
        "Hessian": curvature,
    }
    if entropy is not None:
        parts["local entropy"] = entropy
        rows += [
            ("local entropy", f"{_number(entropy.value)} +- {_number(entropy.stderr)}"),
            ("  above the loss", f"{_number(entropy.value - card.loss)} +- {_number(entropy.stderr)}"),
            ("  drift", _number(entropy.drift)),
        ]
    failed = [(name, explain(part.status)) for name, part in parts.items() if int(part.status) >= Status.MAX_STEPS]
    rows += [(f"status of {name}", text) for name, text in failed] or [("status", explain(card.status))]
    return "\n".join(f"{name:<34} {text}" for name, text in rows)


def _number(value: Any) -> str:
    return f"{float(value):.4g}"
