"""What an optimiser costs beside plain SGD: one training step of an MLP with 269,322 parameters.

The floor is the step of plain SGD (gradient of a batch of 128 and update). `couple_replicas` is charged per replica: a
step of R replicas over R steps of one. "update alone" leaves the gradient out; there the floor is memory traffic, so an
optimiser that keeps three more copies of the parameters cannot come near 1. `cpu_` is processor time over all threads,
which a busy machine does not disturb.

SAM has a peer in the same process, `optax.contrib.sam` (rows with `library`): `jflat_over_this` divides jflat's wall
time of the same step by its own, `cpu_jflat_over_this` the processor time; `error` is the largest difference of the
parameters after the steps from the definition, w <- w - lr grad L(w + rho g/|g|) with Nesterov's momentum, in a plain
loop in float64, over their largest change. "opaque" takes both gradients in one update, as jflat does; "transparent"
needs two updates a step, and selects between them by arithmetic. Both make NaN of a zero gradient, where the definition
has no perturbation: `finite_at_zero_gradient`. Entropy-SGD and coupled replicas have no peer in JAX.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.flatten_util import ravel_pytree

from benchmarks.harness import measure_together, record
from jflat.core import tree
from jflat.losses import cross_entropy, on_model
from jflat.models import mlp
from jflat.optim import couple_replicas, entropy_sgd, init_replicas, replicate, sam

__all__ = ["main"]

RATE, MOMENTUM, RADIUS = 0.01, 0.9, 0.05
"""Of SAM; the first two of all."""


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: for each optimiser, the time of a step and of an update alone over plain SGD's."""
    widths, batch_size, num_steps, repeats, replicas = ((8,), 4, 2, 2, 2) if toy else ((256, 256), 128, 20, 15, 3)
    model = mlp((28, 28, 1), widths=widths, activation="tanh")
    params, _ = model.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (replicas, batch_size, 28, 28, 1))
    y = jax.random.randint(jax.random.key(2), (replicas, batch_size), 0, 10)
    gradient = jax.grad(on_model(cross_entropy, lambda params, x: model.apply(params, {}, x)))
    base = optax.sgd(RATE, MOMENTUM, nesterov=True)
    optimisers: dict[str, tuple[optax.GradientTransformation, Any]] = {
        "sgd": (base, params),
        "entropy_sgd": (entropy_sgd(base, base, num_inner=5, gamma=1.0), params),
        "couple_replicas": (
            replicate(optax.chain(couple_replicas(1.0, axis_name="replica"), base)),
            init_replicas(lambda key: model.init(key)[0], jax.random.key(3), replicas),
        ),
    }

    def steps(tx: optax.GradientTransformation, with_gradient: bool, is_replicated: bool) -> Any:
        def run(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                params, opt_state = carry
                if not with_gradient:
                    grads = tree.scale(1e-3, params)
                elif is_replicated:
                    grads = jax.lax.map(lambda row: gradient(row[0], (row[1], row[2])), (params, x, y))
                else:
                    grads = gradient(params, (x[0], y[0]))
                updates, opt_state = tx.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

            return jax.lax.scan(step, (params, opt_state), length=num_steps)[0]

        return run

    rivals = {}
    for name, (tx, start) in optimisers.items():
        opt_state = tx.init(start)
        for with_gradient in (True, False):
            fn = steps(tx, with_gradient, name == "couple_replicas")
            rivals[f"{name} {with_gradient}"] = (fn, (start, opt_state, x, y))
    times = measure_together(rivals, repeats=repeats)
    rows = _sharpness_aware(output, gradient, params, (x[0], y[0]), num_steps, repeats)
    for name in optimisers:
        share = replicas if name == "couple_replicas" else 1
        ratios = {
            label: round(times[f"{name} {flag}"].seconds / times[f"sgd {flag}"].seconds / share, 3)
            for label, flag in (("step_over_sgd", True), ("update_alone_over_sgd", False))
        }
        ratios |= {
            f"cpu_{label}": round(times[f"{name} {flag}"].cpu_seconds / times[f"sgd {flag}"].cpu_seconds / share, 3)
            for label, flag in (("step_over_sgd", True), ("update_alone_over_sgd", False))
        }
        row = {
            "benchmark": "optimisers",
            "optimiser": name,
            "parameters": tree.size(params),
            "replicas": share,
            **ratios,
        }
        rows.append(record(output, row | times[f"{name} True"].row() | {"steps": num_steps}))
    return rows


def _sharpness_aware(
    output: pathlib.Path | None,
    gradient: Any,
    params: Any,
    batch: Any,
    num_steps: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Rows: SAM by jflat and by optax, `num_steps` steps on one batch, in turn with those of plain SGD."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(RADIUS))
    base = optax.with_extra_args_support(optax.sgd(RATE, MOMENTUM, nesterov=True))
    rivals = {
        "jflat": (sam(base, rho=RADIUS), 1),
        "optax, opaque": (optax.contrib.sam(base, adversary, opaque_mode=True), 1),
        "optax, transparent": (optax.contrib.sam(base, adversary), 2),
    }

    def steps(tx: optax.GradientTransformationExtraArgs, updates_each: int) -> Any:
        def run(params: Any, opt_state: Any, batch: Any) -> Any:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                params, opt_state = carry
                grads = gradient(params, batch)
                updates, opt_state = tx.update(grads, opt_state, params, grad_fn=lambda w, i: gradient(w, batch))
                return (optax.apply_updates(params, updates), opt_state), None

            return jax.lax.scan(step, (params, opt_state), length=updates_each * num_steps)[0]

        return run

    calls = {name: (steps(tx, each), (params, tx.init(params), batch)) for name, (tx, each) in rivals.items()}
    times = measure_together({"sgd": (steps(base, 1), (params, base.init(params), batch)), **calls}, repeats=repeats)
    floor = times["sgd"]
    true = _plain_sam(gradient, params, batch, num_steps)
    start = np.asarray(ravel_pytree(params)[0], np.float64)
    rows = []
    for name, (tx, _) in rivals.items():
        fn, args = calls[name]
        found = np.asarray(ravel_pytree(fn(*args)[0])[0], np.float64)
        error = np.max(np.abs(found - true)) / np.max(np.abs(true - start))
        flat = tree.zeros_like(params)
        at_zero = tx.update(flat, tx.init(params), params, grad_fn=lambda w, i: tree.scale(0.0, w))[0]
        row = {
            "benchmark": "optimisers",
            "optimiser": "sam",
            "library": name,
            "parameters": tree.size(params),
            "step_over_sgd": round(times[name].seconds / floor.seconds, 3),
            "cpu_step_over_sgd": round(times[name].cpu_seconds / floor.cpu_seconds, 3),
            "jflat_over_this": round(times["jflat"].seconds / times[name].seconds, 3),
            "cpu_jflat_over_this": round(times["jflat"].cpu_seconds / times[name].cpu_seconds, 3),
            "error": float(f"{error:.1e}"),
            "finite_at_zero_gradient": bool(jnp.all(jnp.isfinite(ravel_pytree(at_zero)[0]))),
        }
        rows.append(record(output, row | times[name].row() | {"steps": num_steps}))
    return rows


def _plain_sam(gradient: Any, params: Any, batch: Any, num_steps: int) -> np.ndarray:
    """The definition in float64, as a flat vector."""
    with jax.enable_x64(True):
        x, y = (np.asarray(part) for part in batch)
        vector, unravel = ravel_pytree(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
        slope = jax.jit(lambda vector, x, y: ravel_pytree(gradient(unravel(vector), (x, y)))[0])
        w, moved = np.asarray(vector), np.zeros(vector.size)
        for _ in range(num_steps):
            g = np.asarray(slope(w, x.astype(np.float64), y))
            g = np.asarray(slope(w + RADIUS * g / np.linalg.norm(g), x.astype(np.float64), y))
            moved = MOMENTUM * moved + g
            w = w - RATE * (MOMENTUM * moved + g)
        return w
