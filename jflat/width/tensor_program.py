r"""The infinite-width limit of deep muP networks under gradient descent: the Tensor Program, as clouds of particles.

A network with L hidden layers f = V phi(W^L ... phi(W^2 phi(U xi))) in the maximal update parametrisation, in effective
weights: U ~ N(0, 1) (n x d), W^l ~ N(0, 1/n) (n x n), n V ~ N(0, 1), and learning rates n eta, eta, eta / n. As n
grows, the neurons of one layer become independent draws of random variables Z (<X, Y> = E[X Y] over the layer), and
(2308.01814, theorem 2.7.1; chi_t = dLoss/df, dx^L = n V chi, dh = dx phi'(h), sums over past steps and samples)

    h_t  = Zhat(W x_t)    + sum_{s < t}  dh_s E[d x_t / d Zhat(W^T dh_s)] - eta sum_{s < t} dh_s <x_s, x_t>
    dx_t = Zhat(W^T dh_t) + sum_{s <= t} x_s E[d dh_t / d Zhat(W x_s)]    - eta sum_{s < t} x_s <dh_s, dh_t>

with Zhat Gaussian, Cov(Zhat(W x), Zhat(W y)) = <x, y>, and Zhat(W .) independent of Zhat(W^T .). The middle terms are
the correction ("Zdot") for W and W^T being one matrix; without them (`zdot=False`) one gets the limit of networks
whose backward pass has an independent copy of W_0.

The causal scheme: M particles stand for each layer. Let Q be an orthonormal basis (in <,>) of the x that W has met, P
one of the dh that W^T has met, e and e' standard normal columns, one for each column of Q and of P, on the layer above
and below. By Stein's lemma E[d x / d Zhat(W^T P_c)] = E[e'_c x], so both formulas are one matrix and its transpose,

    W_t = e Q^T + P e'^T + P D_t Q^T    (inner products <,>),         D_{t+1} = D_t - eta [P^T dh] [Q^T x]^T.

A step adds the parts of x_t and dh_t outside of the span to Q and P and nothing else: no Gram matrix is inverted, no
jitter is needed, repeated inputs do no harm, and no self-consistency loop is run.

Approximations: (i) averages over M particles: a statistical error of order M^{-1/2}, measured as a standard error over
independent replicas by `tp_limit`, and a bias of order C / M; (ii) directions below 100 eps |x| are dropped. With
`whiten` (the default) all normal columns of a layer are made exactly orthonormal, so linear networks (phi = identity)
are exact to rounding at any M that holds the columns, and only what is nonlinear has an error: two to three times less
at L = 2, 3 with tanh, eta = 1, 6 steps (s.e. of four replicas at M = 32768: 0.0008 of f about 0.6, without it 0.0024).

Cost: O(L M C P) multiplications a step and 4 (L - 1) M C numbers, C the capacity (steps times batch): polynomial, where
nested expectations are exponential in the number of steps, and without n x n matrices.

Differs from finite-width simulation: error M^{-1/2} with O(M C) memory instead of n^{-1/2} with n^2. Differs from the
pi-limit (Yang, Santacroce, Hu 2022): any phi, gradients not projected, but fewer steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check, tree
from jflat.curvature.probes import mean_and_stderr
from jflat.width.request import Activation, LossGrad, matmul, require_descent, require_inputs

__all__ = ["TPLayer", "TPResult", "TPState", "tp_limit", "tp_limit_apply", "tp_limit_init", "tp_limit_step"]


class TPLayer(NamedTuple):
    """The matrix W between two layers, as what it does to the vectors it has met; columns of the future are zero."""

    below: jax.Array
    """Q (M, C): orthonormal basis of the activations below."""
    above: jax.Array
    """P (M, C): orthonormal basis of the gradients above."""
    forward_noise: jax.Array
    """e (M, C), on the layer above: W_0 Q."""
    backward_noise: jax.Array
    """e' (M, C), on the layer below: W_0^T P."""
    update: jax.Array
    """D (C, C): W_t - W_0 = P D Q^T."""


class TPState(NamedTuple):
    """The limit network at one time."""

    first: jax.Array
    """U (M, d)."""
    hidden: tuple[TPLayer, ...]
    """W^2, ..., W^L."""
    readout: jax.Array
    """n V (M, do)."""
    used: jax.Array
    """int32: columns in use, the number of samples of all steps so far."""
    status: jax.Array
    """int32: COMPLETED; MAX_STEPS (a step did not fit into the capacity) or NON_FINITE (a step diverged): that step and
    all later ones were not done, and their outputs are NaN."""


class TPResult(NamedTuple):
    """Gradient descent at infinite width, at the times 0, ..., T."""

    outputs: jax.Array
    """f_t(X) (T + 1, P, do), mean over replicas."""
    outputs_error: jax.Array
    """Its standard error over the replicas, of the same shape."""
    test_outputs: jax.Array
    """f_t(X_test) (T + 1, P_test, do)."""
    test_outputs_error: jax.Array
    """Its standard error."""
    kernels: jax.Array
    """<x^l_t(xi), x^l_t(xi')> on X (T + 1, L, P, P): the feature kernels of all hidden layers."""
    kernels_error: jax.Array
    """Their standard error."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE where a replica diverged (all values from that step on are NaN)."""


def _mean_inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """<a_i, b_j>, an average over particles."""
    return matmul(a.T, b) / a.shape[0]


def _normal_columns(key: jax.Array, shape: tuple[int, int], dtype: Any, whiten: bool) -> jax.Array:
    """Standard normal (M, K); with `whiten`, uniform among those with second moments exactly 1 over the particles."""
    noise = jax.random.normal(key, shape, dtype)
    if not whiten:
        return noise
    basis, triangle = jnp.linalg.qr(noise)
    return jnp.sqrt(jnp.asarray(shape[0], dtype)) * basis * jnp.sign(jnp.diagonal(triangle))


def tp_limit_init(
    key: jax.Array,
    d: int,
    do: int,
    *,
    depth: int,
    particles: int,
    capacity: int,
    whiten: bool = True,
    dtype: Any = None,
) -> TPState:
    """The limit network at initialisation, with all its random numbers drawn.

    Args:
      key: a typed key.
      d, do: numbers of inputs and outputs.
      depth: L, the number of hidden layers, at least 1.
      particles: M, for each layer; at least C, and with `whiten` at least the number of normal columns of a layer,
        max(d + C, 2 C, C + do).
      capacity: C, the number of samples over all steps, and of those evaluated with `tp_limit_apply` after them.
      whiten: make second moments exact (module docstring); False is plain Monte Carlo.
      dtype: of all arrays; None is the default float.

    Returns:
      A `TPState` of 4 (L - 1) M C numbers and more.

    Raises:
      ValueError: if a number is out of range.

    Cost: M (2 C)^2 multiplications a layer with `whiten`.

    Example: V is independent of the first layer, so f_0 = 0.

    >>> state = tp_limit_init(jax.random.key(0), 2, 1, depth=2, particles=16, capacity=4)
    >>> bool(abs(tp_limit_apply(state, jnp.ones((1, 2)), phi=lambda h: h)).max() < 1e-6)
    True
    """
    where = "tp_limit_init"
    for name, value in {"d": d, "do": do, "depth": depth, "particles": particles, "capacity": capacity}.items():
        check.require_integer(where, name, value, 1)
    dtype = jnp.zeros((), float if dtype is None else dtype).dtype
    check.require(jnp.issubdtype(dtype, jnp.floating), where, "dtype", "must be a floating-point type", dtype)
    sizes = []  # normal columns of each layer: those of the weights at the ends, and of the matrices below and above
    for index in range(depth):
        ends = d * (index == 0) + do * (index == depth - 1)
        sizes.append((capacity * (index > 0), capacity * (index < depth - 1), ends))
    least = max(sum(size) for size in sizes) if whiten else capacity
    rule = f"must be at least {least}, {'the normal columns of a layer' if whiten else 'the capacity'}"
    check.require(particles >= least, where, "particles", rule, particles)
    layers = [
        _normal_columns(k, (particles, sum(size)), dtype, whiten)
        for k, size in zip(jax.random.split(key, depth), sizes, strict=True)
    ]
    zeros = jnp.zeros((particles, capacity), dtype)
    hidden = tuple(
        TPLayer(
            below=zeros,
            above=zeros,
            forward_noise=layers[index + 1][:, :capacity],
            backward_noise=layers[index][:, capacity * (index > 0) :][:, :capacity],
            update=jnp.zeros((capacity, capacity), dtype),
        )
        for index in range(depth - 1)
    )
    first = layers[0][:, sum(sizes[0][:2]) :][:, :d]
    readout = layers[-1][:, layers[-1].shape[1] - do :]
    return TPState(first, hidden, readout, jnp.int32(0), jnp.int32(Status.COMPLETED))


def _extend(basis: jax.Array, columns: jax.Array, start: jax.Array) -> jax.Array:
    """Add the directions of `columns` outside of the span of `basis` to it, from column `start` on."""
    rest = columns
    for _ in range(2):  # twice is enough
        rest = rest - matmul(basis, _mean_inner(basis, rest))
    left, triangle = jnp.linalg.qr(rest)
    rotation, lengths, _ = jnp.linalg.svd(triangle)
    limit = 100 * jnp.finfo(basis.dtype).eps * jnp.linalg.norm(columns)
    kept = jnp.where(lengths > limit, jnp.sqrt(jnp.asarray(basis.shape[0], basis.dtype)), 0)
    return jax.lax.dynamic_update_slice(basis, matmul(left, rotation) * kept, (jnp.int32(0), start))


def _ascend(layer: TPLayer, x: jax.Array, zdot: bool) -> jax.Array:
    """W_t x."""
    known = _mean_inner(layer.below, x)
    above = matmul(layer.update, known)
    if zdot:
        above = above + _mean_inner(layer.backward_noise, x)
    return matmul(layer.forward_noise, known) + matmul(layer.above, above)


def _descend(layer: TPLayer, dh: jax.Array, zdot: bool) -> jax.Array:
    """W_t^T dh."""
    flipped = layer._replace(
        below=layer.above,
        above=layer.below,
        forward_noise=layer.backward_noise,
        backward_noise=layer.forward_noise,
        update=layer.update.T,
    )
    return _ascend(flipped, dh, zdot)


def _forward(
    state: TPState, x: jax.Array, phi: Activation, zdot: bool, start: jax.Array
) -> tuple[TPState, list[jax.Array], list[jax.Array], jax.Array]:
    """(state that has met x, pre-activations, activations, each (M, P), and outputs (P, do))."""
    pre = [matmul(state.first, x.T)]
    hidden = []
    for layer in state.hidden:
        act = phi(pre[-1])
        layer = layer._replace(below=_extend(layer.below, act, start))
        hidden.append(layer)
        pre.append(_ascend(layer, act, zdot))
    acts = [phi(h) for h in pre]
    return state._replace(hidden=tuple(hidden)), pre, acts, _mean_inner(acts[-1], state.readout)


def _update(
    state: TPState, x: jax.Array, pre: list, acts: list, chi: jax.Array, phi: Activation, lr: jax.Array, zdot: bool
) -> TPState:
    """One step of gradient descent, of a state that has met x."""
    size = jnp.sqrt(jnp.sum(chi * chi, axis=1))
    direction = jnp.where(size[:, None] > 0, chi / jnp.where(size > 0, size, 1)[:, None], 0)
    dx = matmul(state.readout, direction.T)
    hidden = []
    for h, act, layer in zip(pre[:0:-1], acts[-2::-1], state.hidden[::-1], strict=True):
        dh = jax.jvp(phi, (h,), (dx,))[1]
        layer = layer._replace(above=_extend(layer.above, dh, state.used))
        dx = _descend(layer, dh, zdot)
        change = matmul(_mean_inner(layer.above, dh) * size, _mean_inner(layer.below, act).T)
        hidden.append(layer._replace(update=layer.update - lr * change))
    dh = jax.jvp(phi, (pre[0],), (dx,))[1]
    return state._replace(
        first=state.first - lr * matmul(dh * size, x),
        hidden=tuple(hidden[::-1]),
        readout=state.readout - lr * matmul(acts[-1], chi),
        used=state.used + x.shape[0],
    )


def _guarded(old: TPState, new: TPState, fits: jax.Array) -> TPState:
    """The new state, or the old one with a status."""
    parts = [new.first, new.readout, *(layer.update for layer in new.hidden)]
    status = jnp.where(tree.all_finite(parts), old.status, Status.NON_FINITE)
    status = jnp.where(fits, status, Status.MAX_STEPS)
    status = jnp.where(old.status == Status.COMPLETED, status, old.status).astype(jnp.int32)
    return tree.where(status == Status.COMPLETED, new, old)._replace(status=status)


def _fits(state: TPState, num: int) -> jax.Array:
    if not state.hidden:
        return jnp.bool_(True)
    return state.used + num <= state.hidden[0].below.shape[1]


def tp_limit_step(
    state: TPState,
    xb: jax.Array,
    yb: jax.Array,
    *,
    phi: Activation,
    loss_grad: LossGrad,
    lr: float | jax.Array,
    zdot: bool = True,
) -> tuple[TPState, jax.Array]:
    """One step of (stochastic) gradient descent of the limit network on one batch.

    Args:
      state: before the step.
      xb: (P, d) inputs.
      yb: targets, as `loss_grad` wants them.
      phi: elementwise activation, differentiable (tanh, erf, a smooth relu; for relu the limit is formally open).
      loss_grad: (f (P, do), yb) -> dLoss/df (P, do), the 1 / P of the mean included: `jax.grad` of the loss.
      lr: eta; may be traced.
      zdot: False leaves the correction out, for comparison.

    Returns:
      (state after it, f(xb) (P, do) before it); NaN with a `status` if the step did not fit or diverged earlier.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Cost: about 16 (L - 1) M C P multiplications.

    Example: phi = identity, L = 1, xi = y = eta = 1, loss -f: U and nV gain each other, so f = <nV + U, U + nV> = 2.

    >>> state = tp_limit_init(jax.random.key(0), 1, 1, depth=1, particles=8, capacity=1)
    >>> one = jnp.ones((1, 1))
    >>> state, _ = tp_limit_step(state, one, one, phi=lambda h: h, loss_grad=lambda f, y: -y, lr=1.0)
    >>> tp_limit_apply(state, one, phi=lambda h: h).round(5)
    Array([[2.]], dtype=float32)
    """
    where = "tp_limit_step"
    require_inputs(where, "xb", xb, state.first.shape[1], state.first.dtype)
    check.require_number(where, "lr", lr)
    met, pre, acts, outputs = _forward(state, xb, phi, zdot, state.used)
    chi = loss_grad(outputs, yb)
    check.require(chi.shape == outputs.shape, where, "loss_grad", f"must return shape {outputs.shape}", chi.shape)
    new = _update(met, xb, pre, acts, chi, phi, tree.cast_like(lr, xb), zdot)
    fits = _fits(state, xb.shape[0])
    outputs = jnp.where(fits & (state.status == Status.COMPLETED), outputs, jnp.nan)
    return _guarded(state, new, fits), outputs


def tp_limit_apply(state: TPState, x: jax.Array, *, phi: Activation, zdot: bool = True) -> jax.Array:
    """f(x) of the limit network (n, do), which is deterministic but for the error of the particles.

    Args:
      state: at any time, with capacity for n further columns (they are used and given back; otherwise NaN). For large n
        `jax.vmap` (or `jax.lax.map`) over single inputs x[None] needs one.
      x: (n, d).
      phi: the activation.
      zdot: as in training.

    Raises:
      ValueError: if shapes or dtypes do not fit.
    """
    require_inputs("tp_limit_apply", "x", x, state.first.shape[1], state.first.dtype)
    outputs = _forward(state, x, phi, zdot, state.used)[3]
    return jnp.where(_fits(state, x.shape[0]), outputs, jnp.nan)


def tp_limit(
    phi: Activation,
    widths_particles: int,
    depth: int,
    *,
    X: jax.Array,
    Y: jax.Array,
    X_test: jax.Array | None = None,
    do: int | None = None,
    loss_grad: LossGrad,
    lr: float | jax.Array,
    steps: int,
    key: jax.Array,
    zdot: bool = True,
    replicas: int = 4,
    whiten: bool = True,
) -> TPResult:
    """Full-batch gradient descent of an infinitely wide muP network of any depth, with standard errors.

    Args:
      phi: elementwise activation.
      widths_particles: M for each layer and replica.
      depth: L, the number of hidden layers.
      X: (P, d) inputs; their dtype is that of the computation (float64 is advised above some 20 steps).
      Y: targets for `loss_grad`.
      X_test: (P_test, d), or None.
      do: number of outputs; None is Y.shape[1].
      loss_grad: (f, Y) -> dLoss/df, the 1 / P included.
      lr: eta, a number or (steps,) of them.
      steps: T.
      key: a typed key; `jax.vmap` over keys works too.
      zdot: False for the limit with an independent backward matrix.
      replicas: independent populations, at least 2, for means and standard errors; run one after the other.
      whiten: as in `tp_limit_init`.

    Returns:
      A `TPResult`.

    Raises:
      ValueError: if shapes do not fit or a number is out of range.

    Accuracy: the standard errors are of the mean over replicas, relative to their own size uncertain by
    1 / sqrt(2 (replicas - 1)); they fall as (M replicas)^{-1/2}. The bias of order C / M is not in them: keep
    `replicas` well below M / C^2. See the module docstring.

    Cost: about 16 (L - 1) M C (P + P_test / 2) (T + 1) multiplications a replica, with C = (T + 1) P + P_test, and
    4 (L - 1) M C numbers at once.

    Example: a linear network is exact; with xi = y = 1, eta = 1/10 and loss (f - 1)^2 / 2, f_t = 0, 2 / 10, 0.36288.

    >>> one = jnp.ones((1, 1))
    >>> found = tp_limit(lambda h: h, 8, 1, X=one, Y=one, loss_grad=lambda f, y: f - y, lr=0.1, steps=2,
    ...                  key=jax.random.key(0))
    >>> [round(abs(f.item()), 5) for f in found.outputs]
    [0.0, 0.2, 0.36288]
    """
    where = "tp_limit"
    do, rates = require_descent(where, X, Y, X_test, do=do, loss_grad=loss_grad, lr=lr, steps=steps, replicas=replicas)
    num, num_test = X.shape[0], 0 if X_test is None else X_test.shape[0]

    def run(one_key: jax.Array) -> tuple[tuple, jax.Array]:
        capacity = (steps + 1) * num + num_test
        start = tp_limit_init(
            one_key,
            X.shape[1],
            do,
            depth=depth,
            particles=widths_particles,
            capacity=capacity,
            whiten=whiten,
            dtype=X.dtype,
        )

        def step(state: TPState, rate: jax.Array) -> tuple[TPState, tuple]:
            met, pre, acts, outputs = _forward(state, X, phi, zdot, state.used)
            kernels = jnp.stack([_mean_inner(act, act) for act in acts])
            test = jnp.zeros((0, do), X.dtype)
            if X_test is not None:
                test = _forward(met, X_test, phi, zdot, state.used + num)[3]
            new = _update(met, X, pre, acts, loss_grad(outputs, Y), phi, rate, zdot)
            values = (outputs, test, kernels)
            values = jax.tree.map(lambda v: jnp.where(state.status == Status.COMPLETED, v, jnp.nan), values)
            return _guarded(state, new, jnp.bool_(True)), values

        end, values = jax.lax.scan(step, start, rates)
        return values, end.status

    values, statuses = jax.lax.map(run, jax.random.split(key, replicas))
    outputs, test, kernels = (mean_and_stderr(v) for v in values)
    return TPResult(*outputs, *test, *kernels, status=jnp.max(statuses))
