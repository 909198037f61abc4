"""What the experiment on constructions computes: each function is a part, configuration to arrays (float64)."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jflat.core import Status
from jflat.landscape import constructions as c
from jflat.landscape import linear_path, path_losses
from jflat.losses import squared_error

__all__ = ["ACTIVATIONS", "double", "duplicate", "factor", "minimum", "neuron", "relu", "sigmoid", "students", "wide"]

Arrays = dict[str, Any]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


@contextmanager
def double() -> Iterator[None]:
    """Float64 inside, whatever the caller's setting."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def cloud(seed: int, count: int, dimension: int) -> jax.Array:
    """Gaussian inputs."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, dimension)))


@functools.partial(jax.jit, static_argnums=(0, 3))
def descend(loss_fn: Callable, params: Any, batch: Any, num_steps: int, rate: float) -> tuple[Any, jax.Array]:
    """Gradient descent whose steps are taken only where they lower the loss (the rate then grows by 1.1, else halves).

    Returns:
      where it ends, and the losses (num_steps + 1,), which never rise.
    """

    def step(carry: tuple, _: None) -> tuple:
        params, rate, value = carry
        slopes = jax.grad(loss_fn)(params, batch)
        trial = jax.tree.map(lambda p, g: p - rate * g, params, slopes)
        there = loss_fn(trial, batch)
        lower = there < value
        params = jax.tree.map(lambda new, old: jnp.where(lower, new, old), trial, params)
        carry = params, jnp.where(lower, 1.1 * rate, rate / 2), jnp.where(lower, there, value)
        return carry, carry[2]

    start = loss_fn(params, batch)
    begin = params, jnp.asarray(rate, start.dtype), start
    losses: jax.Array
    (params, _, _), losses = jax.lax.scan(step, begin, None, length=num_steps)
    return params, jnp.append(start, losses)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def fitted(activation: Callable, theta: jax.Array, batch: Any, dimension: int, num_steps: int) -> jax.Array:
    """The half mean squares that Levenberg-Marquardt reaches from starts (S, P) of a one-hidden-layer network."""
    inputs, targets = batch

    def residuals(theta: jax.Array) -> jax.Array:
        units = theta.reshape(-1, dimension + 2)
        params = c.OneHidden(units[:, :dimension], units[:, dimension], units[:, dimension + 1])
        return c.predict(params, inputs, activation) - targets

    def step(carry: tuple, _: None) -> tuple:
        theta, damping = carry
        r, J = residuals(theta), jax.jacrev(residuals)(theta)
        move = J.T @ jnp.linalg.solve(J @ J.T + damping * jnp.eye(r.size), r)
        lower = jnp.sum(residuals(theta - move) ** 2) < jnp.sum(r**2)
        damping = jnp.where(lower, jnp.maximum(damping / 3, 1e-14), jnp.minimum(damping * 4, 1e8))
        return (jnp.where(lower, theta - move, theta), damping), None

    def one(theta: jax.Array) -> jax.Array:
        end = jax.lax.scan(step, (theta, jnp.ones(())), None, length=num_steps)[0][0]
        return 0.5 * jnp.mean(residuals(end) ** 2)

    return jax.lax.map(one, theta)


def _certificate(certificate: c.Certificate) -> Arrays:
    return dict(certificate._asdict())


def minimum(config: Any, name: str, num_units: int) -> Arrays:
    """D1 and D2: certificate, probes by radius, the plateau, the descent beyond it, and fits from random starts."""
    activation = ACTIVATIONS[name]
    inputs = cloud(config.seed, config.num_samples, config.dimension)
    key = jax.random.key(config.seed)
    radii = np.geomspace(1e-3, 3.0, config.num_radii)
    options: Any = {"num_probes": config.num_probes}
    found = c.bad_local_minimum(inputs, num_units, activation, key, **options)
    loss_fn, batch = c.half_mean_square(activation), (inputs, found.targets)
    theta, unravel = jax.flatten_util.ravel_pytree(found.params)

    @jax.jit
    def increases(keys: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            u = jax.random.normal(key, theta.shape)
            u = u / jnp.linalg.norm(u)
            return jax.vmap(lambda r: loss_fn(unravel(theta + r * u), batch) - found.loss)(jnp.asarray(radii))

        return jax.lax.map(one, keys, batch_size=100)

    probes = increases(jax.random.split(key, min(config.num_probes, 2000)))
    plateau = c.leave_plateau(found, inputs, activation, key, num_points=config.num_points)
    last = jax.tree.map(lambda leaf: leaf[-1], plateau.params)
    flat, _ = jax.flatten_util.ravel_pytree(last)
    curvature = jax.hessian(lambda flat: loss_fn(unravel(flat), batch))(flat)
    out = unravel(flat + 1e-2 * jnp.linalg.eigh(curvature)[1][:, 0])
    rate = 1.0 / found.certificate.max_eigenvalue
    _, descent = descend(loss_fn, out, batch, config.num_steps, rate)
    starts = jax.random.normal(jax.random.fold_in(key, 1), (config.num_fits, theta.size))
    return {
        "loss": found.loss,
        **_certificate(found.certificate),
        "radii": radii,
        "probe_min": probes.min(axis=0),
        "probe_median": jnp.median(probes, axis=0),
        "plateau_loss": plateau.loss,
        "plateau_gradient": plateau.gradient_norm,
        "plateau_eigenvalue": plateau.min_eigenvalue,
        "descent": jnp.append(found.loss, descent),
        "fitted": fitted(activation, starts, batch, config.dimension, config.fit_steps),
    }


def sigmoid(config: Any) -> Arrays:
    """Auer et al.: the loss along an axis, and where gradient descent from N(0, 4) starts ends, by dimension."""
    key = jax.random.key(config.seed)
    found = c.sigmoid_minima(1, key, num_probes=10)
    places = jnp.linspace(-1.5, 6.0, 400)
    profile = jax.vmap(lambda u: c.sigmoid_neuron_loss(u[None], (found.inputs, found.targets)))(places)
    numbers: Arrays = {"places": places, "profile": profile, "wells": found.wells, "dimensions": config.dimensions}
    shares, counts, status, basin = [], [], [], []

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def many(start: jax.Array, batch: Any, rate: float) -> jax.Array:
        return jax.lax.fori_loop(0, 3000, lambda _, w: w - rate * jax.grad(c.sigmoid_neuron_loss)(w, batch), start)

    for dimension in config.dimensions:
        data = c.sigmoid_minima(dimension, key, num_probes=20)
        starts = 2 * jax.random.normal(jax.random.fold_in(key, dimension), (config.num_runs, dimension))
        batch = data.inputs, data.targets
        ends = many(starts, batch, 0.1 * dimension)
        shares.append(jnp.mean(jnp.all(ends < data.wells[1], axis=1)))
        basin.append(jnp.mean(jnp.all(starts < data.wells[1], axis=1)))
        counts.append(jnp.sum(data.certificate.status == Status.CONVERGED))
        status.append(jnp.max(data.certificate.status))
    return numbers | {"global_share": shares, "basin_share": basin, "num_minima": counts, "status": status}


def neuron(config: Any) -> Arrays:
    """D3: the identity at random points, and descent of L and of L~ from the bad minimum."""
    key, lam = jax.random.key(config.seed), config.lam
    inputs = cloud(config.seed, config.num_samples, config.dimension)
    bad = c.bad_local_minimum(inputs, 3, jnp.tanh, key, num_probes=10)
    batch = inputs, bad.targets

    def model_fn(params: c.OneHidden, x: jax.Array) -> jax.Array:
        return c.predict(params, x, jnp.tanh)

    loss_fn = c.with_exponential_neuron(model_fn, squared_error, lam=lam)
    start = c.add_neuron(bad.params, model_fn, inputs)

    def identity(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(jax.tree.leaves(start)))
        drawn = [jax.random.normal(k, x.shape) / 2 for k, x in zip(keys, jax.tree.leaves(start), strict=True)]
        return c.neuron_identity(loss_fn, jax.tree.unflatten(jax.tree.structure(start), drawn), batch, lam=lam)

    gaps = jax.jit(jax.vmap(identity))(jax.random.split(key, 100))
    left = jax.jit(lambda key: c.exit_by_neuron(loss_fn, start, batch, key))(key)
    nudge = jax.tree.map(lambda x: x + 1e-3, bad.params)
    _, plain = descend(c.half_mean_square(jnp.tanh), nudge, batch, config.num_steps, 0.1)
    end, modified = descend(loss_fn, left.params, batch, config.num_steps, 0.03)
    return {
        "identity": gaps,
        "plain": plain,
        "modified": jnp.append(left.loss_before, modified),
        "base_loss": c.half_mean_square(jnp.tanh)(end.base, batch),
        "amplitude": end.neuron.amplitude,
        "status": left.status,
    }


def factor(config: Any) -> Arrays:
    """D4 and D5: identity at random points; the flow without and with a regulariser of b."""
    times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, config.final_time, 240)])
    lam, level = config.factor_lam, 0.5
    factored = c.with_factor(lambda w, _: jnp.sum(w**2), lam=lam)

    def identity(key: jax.Array) -> jax.Array:
        w, a, b = jax.random.normal(key, (3,))
        return c.factor_identity(factored, c.WithFactor(w, a, b), None, lam=lam)

    found: Arrays = {"times": times, "identity": jax.vmap(identity)(jax.random.split(jax.random.key(config.seed), 100))}
    for name, mu in (("open", 0.0), ("closed", config.factor_mu)):
        flow = jax.jit(lambda t, mu=mu: c.factor_flow(level, t, lam=lam, mu=mu))(times)
        found |= {f"{name}.{field}": value for field, value in flow._asdict().items()}
    return found


def duplicate(config: Any) -> Arrays:
    """Fukumizu & Amari: loss, gradient and least eigenvalue on the line of a duplicated neuron, by the sign of B.

    The labels are the outputs of one unit less residuals r, shortest with zero gradient and B = +- m I (or neither).
    """
    gammas, inputs = jnp.linspace(-0.75, 1.75, config.num_gammas), cloud(3, 12, 1)
    small, loss_fn = c.OneHidden(jnp.full((1, 1), 1.5), jnp.full(1, 0.3), jnp.ones(1)), c.half_mean_square(jnp.tanh)
    found: Arrays = {"gammas": gammas}
    x, t = inputs[:, 0], c.predict(small, inputs, jnp.tanh)
    first, second = 1 - t**2, -2 * t * (1 - t**2)
    rows = jnp.stack([t, first, first * x, second * x**2, second * x, second])
    wanted = {"positive": (1.0, 0.0, 1.0), "negative": (-1.0, 0.0, -1.0), "indefinite": (1.0, 0.0, -1.0)}
    for name, entries in wanted.items():
        r = jnp.linalg.lstsq(rows, jnp.array([0.0, 0.0, 0.0, *entries]))[0]
        batch = inputs, t - 0.05 * r / jnp.sqrt(jnp.mean(r**2))

        def measure(gamma: jax.Array, batch: Any = batch) -> tuple[c.Certificate, jax.Array]:
            wide = c.duplicate_neuron(small, gamma)
            proof = c.certify(loss_fn, wide, batch, jax.random.key(0), claim="critical", num_probes=0)
            return proof, loss_fn(wide, batch)

        proofs, losses = jax.lax.map(measure, gammas)
        alone = c.certify(loss_fn, small, batch, jax.random.key(0), claim="strict minimum", num_probes=100)
        B = jnp.linalg.eigvalsh(c.separation_matrix(small, batch, jnp.tanh))
        found |= {f"{name}.{field}": value for field, value in _certificate(proofs).items()}
        found |= {f"{name}.loss": losses, f"{name}.separation": B, f"{name}.small_status": alone.status}
    return found


def relu(config: Any) -> Arrays:
    """D7: the two traps by width, against fits of the same network from random starts."""
    inputs = cloud(config.seed, config.num_samples, config.dimension)
    targets = jnp.sin(2 * inputs[:, 0]) + inputs[:, -1] ** 2
    key, rows = jax.random.key(config.seed), []
    for width in config.widths:
        trap = c.affine_trap(inputs, targets, width, key, num_probes=config.num_probes)
        net = c.OneHidden(*(jnp.ones(s) for s in ((width, config.dimension), (width,), (width,))))
        dead = c.dead_trap(net, inputs, targets, key, num_probes=100)
        starts = jax.random.normal(jax.random.fold_in(key, width), (config.num_fits, width * (config.dimension + 2)))
        fits = fitted(jax.nn.relu, starts, (inputs, targets), config.dimension, config.fit_steps)
        rows.append(
            {
                "loss": trap.loss,
                "bound": trap.bound,
                "fitted": fits,
                "dead_loss": dead.loss,
                "dead_gradient": dead.certificate.gradient_norm,
                "dead_status": dead.certificate.status,
                **_certificate(trap.certificate),
            }
        )
    joined = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    return joined | {"widths": config.widths}


def students(config: Any, num_teachers: int, num_students: int) -> Arrays:
    """D8: losses and convergence of all starts, and the least eigenvalue at some of the spurious minima."""
    key = jax.random.fold_in(jax.random.key(config.seed), 100 * num_teachers + num_students)
    teacher = jnp.eye(num_teachers)
    options: Any = {"num_students": num_students, "num_steps": config.student_steps}
    runs = c.train_students(key, teacher, config.num_starts, **options)
    settled = np.flatnonzero(np.asarray(runs.is_spurious))[: config.num_certified]
    least = [
        c.student_certificate(runs.params[i], teacher, key, tolerance=1e-5, num_probes=20).min_eigenvalue
        for i in settled
    ]
    return {
        "loss": runs.loss,
        "gradient_norm": runs.gradient_norm,
        "is_spurious": runs.is_spurious,
        "outcome": runs.status,
        "min_eigenvalue": np.asarray(least, np.float64),
    }


def wide(config: Any) -> Arrays:
    """D9: the loss along the constructed path and the straight line, for several pairs of minima."""
    loss_fn, pairs = c.half_mean_square(jnp.tanh), []
    width = 2 * config.num_samples
    for pair in range(config.num_pairs):
        keys = jax.random.split(jax.random.key(config.seed + pair), 4)
        batch = jax.random.normal(keys[0], (config.num_samples, 3)), jax.random.normal(keys[1], (config.num_samples,))
        a, b = (c.half_width_minimum(k, *batch, width, jnp.tanh, half=i, scale=1.5) for i, k in enumerate(keys[2:]))
        constructed = path_losses(loss_fn, c.along(c.wide_path(a, b)), batch, num_points=61)
        straight = path_losses(loss_fn, linear_path(a, b), batch, num_points=61)
        pairs.append((constructed.losses, straight.losses, constructed.status, straight.status))
    names = "constructed", "straight", "constructed_status", "straight_status"
    return {"times": np.linspace(0, 1, 61)} | {
        name: np.stack([np.asarray(x) for x in values])
        for name, values in zip(names, zip(*pairs, strict=True), strict=True)
    }
