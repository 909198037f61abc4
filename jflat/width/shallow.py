r"""The infinite-width limit of one hidden layer with any activation: a distribution of neurons under gradient descent.

In the maximal update parametrisation f(xi) = V phi(U xi), U ~ N(0, 1) (n x d), n V ~ N(0, 1), learning rates n eta and
eta / n, every neuron sees the others through f alone. So as n grows, f_t(xi) = E[nV_t phi(U_t xi)] over the neurons
(u, v) = (U, nV), which start as N(0, sigma_u^2) x N(0, sigma_v^2) and follow (2308.01814, theorem 2.5.2)

    v_{t+1} = v_t - eta sum_i chi_i phi(u_t xi_i),    u_{t+1} = u_t - eta sum_i (v_t chi_i) phi'(u_t xi_i) xi_i,

simultaneously, chi_i = dLoss/df(xi_i) with the 1 / P of the mean in it. It is deterministic, with an expectation over
d + do dimensions alone, which a cloud of weighted neurons approximates:

    quadrature        neurons           error, for phi analytic                        measured by
    "gauss_hermite"   size^(d + do)     exponentially small in size^(1/2)              a rule of 3/4 the size
    "sobol"           size              about 1 / size                                 random digital shifts
    "mc"              size              size^(-1/2)                                    independent draws

The map from the initial neuron becomes steeper with time, as exp(eta t) does, and the errors with it; `shallow_limit`
returns them with the values.

Measured (tanh, xi = y = 1, eta = 0.2, after 12 steps): "gauss_hermite" about exp(-sqrt(size)): 1.2e-5, 1.4e-6, 2.5e-7
at 80, 120, 160 nodes; four replicas of "sobol" 5e-5, 4e-6 with 2^12, 2^16 neurons; of "mc" 2e-3, 4e-4.
Gauss-Hermite slows with |xi| (poles of tanh) and with d: 5e-3 with 80^3 nodes for four normal inputs, d = 2, where
"sobol" is better. With phi = identity the Gauss-Hermite rule is exact from size 2 on, as in `linear_limit_apply`.

Differs from `tp_limit` with depth 1: no error of particles where d + do is small (2 to 4).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check, tree
from jflat.core.special import gauss_hermite
from jflat.curvature.probes import mean_and_stderr
from jflat.width.request import Activation, LossGrad, matmul, require_descent, require_inputs

__all__ = [
    "ParticleState",
    "ShallowResult",
    "shallow_limit",
    "shallow_limit_apply",
    "shallow_limit_init",
    "shallow_limit_kernel",
    "shallow_limit_step",
]

QUADRATURES = ("gauss_hermite", "sobol", "mc")
_MOST = 2**26


class ParticleState(NamedTuple):
    """A weighted cloud of N neurons."""

    U: jax.Array
    """Input weights (N, d)."""
    V: jax.Array
    """Output weights times the width (N, do)."""
    logw: jax.Array
    """Logarithms of the weights (N,), which sum to one; they never change."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE where a step diverged: it and all later ones were not done, their outputs NaN."""


class ShallowResult(NamedTuple):
    """Gradient descent at infinite width, at the times 0, ..., T."""

    outputs: jax.Array
    """f_t(X) (T + 1, P, do)."""
    outputs_error: jax.Array
    """Its error, of the same shape: the largest difference so far to the coarser rule, or a standard error."""
    test_outputs: jax.Array
    """f_t(X_test) (T + 1, P_test, do)."""
    test_outputs_error: jax.Array
    """Its error."""
    kernels: jax.Array
    """E[phi(U_t xi) phi(U_t xi')] on X (T + 1, P, P): the feature kernel."""
    kernels_error: jax.Array
    """Its error."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE where a run diverged (values from that step on are NaN)."""


def _sobol_bits(dims: int, size: int) -> np.ndarray:
    """The first `size` Sobol points as integers of 30 bits (size, dims)."""
    from scipy.stats import qmc  # jax needs scipy too; its import takes half a second

    points = qmc.Sobol(dims, scramble=False, bits=30).random(size)
    return (points * 2**30).astype(np.uint32)


def shallow_limit_init(
    d: int,
    do: int,
    *,
    quadrature: str,
    size: int,
    key: jax.Array | None = None,
    sigma_u: float = 1.0,
    sigma_v: float = 1.0,
    dtype: Any = None,
) -> ParticleState:
    """Neurons that stand for N(0, sigma_u^2 I_d) x N(0, sigma_v^2 I_do).

    Args:
      d, do: numbers of inputs and outputs.
      quadrature: "gauss_hermite", "sobol" or "mc".
      size: nodes per axis ("gauss_hermite": N = size^(d + do), at most 2^26; with sigma_v = 0 N = size^d), a power of
        two ("sobol") or any number ("mc") of neurons.
      key: a typed key for "sobol" (a random digital shift) and "mc"; None for "gauss_hermite".
      sigma_u, sigma_v: standard deviations, not negative.
      dtype: None is the default float. In float32 a Sobol coordinate has 22 bits.

    Returns:
      A `ParticleState`.

    Raises:
      ValueError: if a number is out of range, or a key is missing or superfluous.

    Example: E[u^4] = 3 with three nodes.

    >>> state = shallow_limit_init(1, 1, quadrature="gauss_hermite", size=3)
    >>> (jnp.exp(state.logw) @ state.U**4).round(5)
    Array([3.], dtype=float32)
    """
    where = "shallow_limit_init"
    for name, value in {"d": d, "do": do, "size": size}.items():
        check.require_integer(where, name, value, 1)
    check.require_choice(where, "quadrature", quadrature, QUADRATURES)
    check.require_number(where, "sigma_u", sigma_u, 0.0)
    check.require_number(where, "sigma_v", sigma_v, 0.0)
    is_exact = quadrature == "gauss_hermite"
    rule = "must be None for gauss_hermite, which is deterministic" if is_exact else f"must be given for {quadrature}"
    check.require((key is None) == is_exact, where, "key", rule, key)
    drawn: Any = key
    dtype = jnp.zeros((), float if dtype is None else dtype).dtype
    check.require(jnp.issubdtype(dtype, jnp.floating), where, "dtype", "must be a floating-point type", dtype)
    dims = d + do
    if is_exact:
        axes = d if isinstance(sigma_v, int | float) and sigma_v == 0 else dims
        rule = f"must have at most 2^26 nodes, size^{axes}; take sobol"
        check.require(size**axes <= _MOST, where, "size", rule, size)
        nodes, weights = gauss_hermite(size)
        z = np.stack([m.ravel() for m in np.meshgrid(*[nodes] * axes, indexing="ij")], axis=1)
        z = np.pad(z, ((0, 0), (0, dims - axes)))
        with np.errstate(divide="ignore"):  # a weight may underflow: log 0
            logs = np.meshgrid(*[np.log(weights)] * axes, indexing="ij")
        points, logw = jnp.asarray(z, dtype), jnp.asarray(sum(m.ravel() for m in logs), dtype)
    else:
        if quadrature == "sobol":
            check.require(size & (size - 1) == 0, where, "size", "must be a power of two for sobol", size)
            shift = jax.random.bits(drawn, (dims,), jnp.uint32) >> 2
            kept = 30 if dtype == jnp.float64 else 22
            bits = (jnp.asarray(_sobol_bits(dims, size)) ^ shift) >> (30 - kept)
            points = jax.scipy.special.ndtri((bits.astype(dtype) + 0.5) / 2**kept)
        else:
            points = jax.random.normal(drawn, (size, dims), dtype)
        logw = jnp.full(size, -np.log(size), dtype)
    U, V = tree.scale(sigma_u, points[:, :d]), tree.scale(sigma_v, points[:, d:])
    return ParticleState(U, V, logw, jnp.int32(Status.COMPLETED))


def _expected(state: ParticleState, a: jax.Array, b: jax.Array) -> jax.Array:
    """E[a_i b_j] of columns over neurons."""
    return matmul((jnp.exp(state.logw)[:, None] * a).T, b)


def shallow_limit_apply(state: ParticleState, x: jax.Array, *, phi: Activation) -> jax.Array:
    """f(x) = E[V phi(U x)] for x (n, d): (n, do).

    >>> state = shallow_limit_init(1, 1, quadrature="gauss_hermite", size=8)
    >>> state = state._replace(V=state.U)  # f(1) = E[u phi(u)] = E[phi'] = E[3 u^2]
    >>> shallow_limit_apply(state, jnp.ones((1, 1)), phi=lambda h: h**3).round(4)
    Array([[3.]], dtype=float32)
    """
    require_inputs("shallow_limit_apply", "x", x, state.U.shape[1], state.U.dtype)
    return _expected(state, phi(matmul(state.U, x.T)), state.V)


def shallow_limit_kernel(state: ParticleState, x: jax.Array, y: jax.Array, *, phi: Activation) -> jax.Array:
    """The feature kernel E[phi(U x) phi(U y)] for x (n, d), y (m, d): (n, m)."""
    require_inputs("shallow_limit_kernel", "x", x, state.U.shape[1], state.U.dtype)
    require_inputs("shallow_limit_kernel", "y", y, state.U.shape[1], state.U.dtype)
    return _expected(state, phi(matmul(state.U, x.T)), phi(matmul(state.U, y.T)))


def shallow_limit_step(
    state: ParticleState,
    xb: jax.Array,
    yb: jax.Array,
    *,
    phi: Activation,
    loss_grad: LossGrad,
    lr: float | jax.Array,
) -> tuple[ParticleState, jax.Array]:
    """One step of (stochastic) gradient descent of the limit network on one batch.

    Args:
      state: before the step.
      xb: (P, d) inputs.
      yb: targets, as `loss_grad` wants them.
      phi: elementwise activation, differentiable almost everywhere.
      loss_grad: (f (P, do), yb) -> dLoss/df (P, do), the 1 / P of the mean included: `jax.grad` of the loss.
      lr: eta; may be traced.

    Returns:
      (state after it, f(xb) (P, do) before it); f is NaN if an earlier step diverged.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Cost: about 4 N P (d + do) multiplications, N P numbers.

    Example: phi = identity, xi = y = 1, loss (f - 1)^2 / 2, eta = 1/10: f_1 = 2 eta.

    >>> state, one = shallow_limit_init(1, 1, quadrature="gauss_hermite", size=4), jnp.ones((1, 1))
    >>> options = dict(phi=lambda h: h, loss_grad=lambda f, y: f - y, lr=0.1)
    >>> state, before = shallow_limit_step(state, one, one, **options)
    >>> shallow_limit_step(state, one, one, **options)[1].round(6)
    Array([[0.2]], dtype=float32)
    """
    where = "shallow_limit_step"
    require_inputs(where, "xb", xb, state.U.shape[1], state.U.dtype)
    check.require_number(where, "lr", lr)
    act, slope_of = jax.linearize(phi, matmul(state.U, xb.T))
    outputs = _expected(state, act, state.V)
    chi = loss_grad(outputs, yb)
    check.require(chi.shape == outputs.shape, where, "loss_grad", f"must return shape {outputs.shape}", chi.shape)
    U = tree.add_scaled(state.U, -jnp.asarray(lr), matmul(slope_of(matmul(state.V, chi.T)), xb))
    V = tree.add_scaled(state.V, -jnp.asarray(lr), matmul(act, chi))
    status = jnp.where(tree.all_finite((U, V)), state.status, Status.NON_FINITE)
    is_well = state.status == Status.COMPLETED
    status = jnp.where(is_well, status, state.status).astype(jnp.int32)
    U, V = tree.where(status == Status.COMPLETED, (U, V), (state.U, state.V))
    return ParticleState(U, V, state.logw, status), jnp.where(is_well, outputs, jnp.nan)


def shallow_limit(
    phi: Activation,
    *,
    X: jax.Array,
    Y: jax.Array,
    X_test: jax.Array | None = None,
    do: int | None = None,
    loss_grad: LossGrad,
    lr: float | jax.Array,
    steps: int,
    quadrature: str,
    size: int,
    key: jax.Array | None = None,
    replicas: int = 4,
    sigma_u: float = 1.0,
    sigma_v: float = 1.0,
) -> ShallowResult:
    """Full-batch gradient descent of an infinitely wide network with one hidden layer, with errors.

    Args:
      phi: elementwise activation.
      X: (P, d) inputs; their dtype is that of the computation.
      Y: targets for `loss_grad`.
      X_test: (P_test, d), or None.
      do: number of outputs; None is Y.shape[1].
      loss_grad: (f, Y) -> dLoss/df, the 1 / P included.
      lr: eta, a number or (steps,) of them.
      steps: T.
      quadrature, size, key, sigma_u, sigma_v: as in `shallow_limit_init`.
      replicas: for "sobol" and "mc": independent runs, at least 2, whose mean and standard error are returned.

    Returns:
      A `ShallowResult`.

    Raises:
      ValueError: if shapes do not fit or a number is out of range.

    Accuracy: a standard error is itself uncertain by 1 / sqrt(2 (replicas - 1)); a bias of order 1 / size ("mc") is not
    in it. The error of "gauss_hermite" is that of the coarser rule, and so an upper bound where the rule converges.

    Cost: T + 1 steps; two runs ("gauss_hermite") or `replicas`, one after the other.

    Example: see `shallow_limit_step`; the scalar linear network with y = 1, eta = 1/10 again.

    >>> one = jnp.ones((1, 1))
    >>> found = shallow_limit(lambda h: h, X=one, Y=one, loss_grad=lambda f, y: f - y, lr=0.1, steps=2,
    ...                       quadrature="gauss_hermite", size=8)
    >>> [round(abs(f.item()), 5) for f in found.outputs]
    [0.0, 0.2, 0.36288]
    """
    where = "shallow_limit"
    check.require_choice(where, "quadrature", quadrature, QUADRATURES)
    do, rates = require_descent(where, X, Y, X_test, do=do, loss_grad=loss_grad, lr=lr, steps=steps, replicas=replicas)

    def run(num: int, one_key: jax.Array | None) -> tuple[tuple, jax.Array]:
        start = shallow_limit_init(
            X.shape[1],
            do,
            quadrature=quadrature,
            size=num,
            key=one_key,
            sigma_u=sigma_u,
            sigma_v=sigma_v,
            dtype=X.dtype,
        )

        def step(state: ParticleState, rate: jax.Array) -> tuple[ParticleState, tuple]:
            new, outputs = shallow_limit_step(state, X, Y, phi=phi, loss_grad=loss_grad, lr=rate)
            tested = jnp.zeros((0, do), X.dtype) if X_test is None else shallow_limit_apply(state, X_test, phi=phi)
            more = tested, shallow_limit_kernel(state, X, X, phi=phi)
            is_well = state.status == Status.COMPLETED
            return new, (outputs, *(jnp.where(is_well, value, jnp.nan) for value in more))

        end, values = jax.lax.scan(step, start, rates)
        return values, end.status

    if quadrature == "gauss_hermite":
        values, status = run(size, None)
        coarse, other = run(max(1, 3 * size // 4), None)
        pairs = [(f, jax.lax.cummax(jnp.abs(f - rough))) for f, rough in zip(values, coarse, strict=True)]
        status = jnp.maximum(status, other)
    else:
        check.require(key is not None, where, "key", f"must be given for {quadrature}", key)
        keys: Any = key
        values, statuses = jax.lax.map(lambda k: run(size, k), jax.random.split(keys, replicas))
        pairs = [mean_and_stderr(v) for v in values]
        status = jnp.max(statuses)
    outputs, tested, kernels = pairs
    return ShallowResult(*outputs, *tested, *kernels, status=status)
