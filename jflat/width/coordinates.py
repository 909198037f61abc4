"""The coordinate check: does each layer of a network move, as the width grows, by what its parametrisation predicts?

A network is trained for a few steps at several widths, and the root mean square of the coordinates of what changed is
recorded on a fixed batch:

| statistic | of layer l at step t |
| --- | --- |
| `act` | h^l_t |
| `delta` | h^l_t - h^l_0 |
| `dwx` | (W^l_t - W^l_0) x^{l-1}_t, the layer's own update |
| `w0dx` | W^l_0 (x^{l-1}_t - x^{l-1}_0), the change of its input |

The last two are known for layers given as `Linear`. The slope of log statistic against log width, per seed, is compared
with the exponent of `classify`. A wrong learning rate or initial size in one layer shows in that layer.

**What makes slopes clean.** (i) A loss whose derivative with respect to the outputs does not depend on the outputs
(`linear_probe_loss`, the default): with a squared error the random f_0 adds its noise. (ii) A small learning rate: past
the edge of stability of the base network even muP has slopes of -0.3 and worse. (iii) An unstable parametrisation is
to be judged after one step with a tiny learning rate (in float64), before activations saturate. (iv) Widths that start
a few times above the outputs' and inputs' sizes.

Differs from `mup.coord_check` in that changes are recorded, not activations (whose initial size hides a layer that does
not learn), with many seeds in one program and exponents with standard errors. A wrong weight decay shows in neither.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core import check, tree
from jflat.core.status import Status
from jflat.core.tracing import platform_of
from jflat.width.classify import classify
from jflat.width.initialiser import init_transform
from jflat.width.optimiser import abc_optimizer
from jflat.width.parametrisation import ABC
from jflat.width.shapes import infer_infshapes

__all__ = [
    "CoordTable",
    "Linear",
    "Slope",
    "assert_exponents",
    "coord_check",
    "fit_slopes",
    "linear_probe_loss",
    "predicted_slopes",
]

PyTree = Any

STATISTICS = ("act", "delta", "dwx", "w0dx")


class Linear(NamedTuple):
    """One linear layer seen at work, output = inputs @ kernel (+ bias)."""

    inputs: jax.Array
    """x^{l-1}, (B, fan-in)."""
    kernel: jax.Array
    """W^l, (fan-in, fan-out), with its multiplier if it has one."""
    output: jax.Array
    """h^l, (B, fan-out)."""


class CoordTable(NamedTuple):
    """What `coord_check` measured, on the host."""

    widths: tuple[int, ...]
    """W widths, ascending."""
    layers: tuple[str, ...]
    """Names, in the order of the network; the last is the output."""
    stats: dict[str, np.ndarray]
    """By statistic, (S, W, T + 1, layers): root mean squares after 0, ..., T steps; NaN where unknown."""
    parametrisation: ABC
    """Which was checked."""
    status: np.ndarray
    """(S, W) of `Status`: COMPLETED, or NON_FINITE where training overflowed."""


class Slope(NamedTuple):
    """A measured power of the width."""

    value: float
    """Mean over seeds; NaN if a value of the fit is zero (nothing moves), unknown or not finite."""
    stderr: float
    """Standard error over seeds; NaN for one seed."""


def linear_probe_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """-(mean over samples of sum_k y_k f_k): its derivative with respect to the outputs is -y/B, whatever they are.

    >>> linear_probe_loss(jnp.array([[2.0], [4.0]]), jnp.array([[1.0], [-1.0]]))
    Array(1., dtype=float32)
    """
    same = outputs.shape == y.shape
    check.require(same, "linear_probe_loss", "y", f"must have the outputs' shape {outputs.shape}", y.shape)
    return -jnp.sum(outputs * y) / outputs.shape[0]


def coord_check(
    key: jax.Array,
    make: Callable[[int], tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]],
    widths: Sequence[int],
    p: ABC,
    tx: optax.GradientTransformation,
    batch: tuple[jax.Array, jax.Array],
    *,
    probe: jax.Array | None = None,
    output_loss_fn: Callable[[Any, Any], jax.Array] = linear_probe_loss,
    steps: int = 3,
    seeds: int = 6,
    seeds_at_once: int | None = None,
    base_width: int | None = None,
    layout: str = "in_out",
    overrides: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
) -> CoordTable:
    """Train at each width for a few steps in the parametrisation `p` and record how far each layer moved.

    Args:
      key: of the initial parameters.
      make: width -> (init_fn(key) -> params, apply_fn(params, x) -> outputs, layers_fn(params, x) -> {name: layer}),
        layers in order, each an array h^l or a `Linear`, the output last. The initialiser is the standard one.
      widths: W >= 2 of them, ascending.
      p: the parametrisation; `init_transform` and `abc_optimizer` are applied here.
      tx: the optimiser at the base width, learning rate included.
      batch: (x, y), the same in every step.
      probe: inputs on which coordinates are recorded; None is x.
      output_loss_fn: (outputs, y) -> scalar.
      steps: T >= 1.
      seeds: S >= 1 independent initialisations.
      seeds_at_once: how many of them side by side, in one program. None is one on a CPU, where products with several
        matrices are slow (2.9 times, six seeds to width 2048), and all elsewhere; fewer where memory is short.
      base_width: None is the first width.
      layout, overrides: as in `infer_infshapes`.

    Returns:
      A `CoordTable`.

    Raises:
      ValueError: for widths that do not ascend, and what `infer_infshapes` refuses.

    Cost: one compilation per width; S T gradients at each width, and (2 + 2 / S) T forward passes of the probe with the
    products W x; memory of S (or seeds_at_once) networks, three copies each.

    >>> from jflat.width.networks import plain_mlp
    >>> from jflat.width.parametrisation import mup
    >>> x, y = jnp.eye(2), jnp.ones((2, 1))
    >>> make = lambda n: plain_mlp(n, input_size=2, depth=1)
    >>> table = coord_check(jax.random.key(0), make, (256, 512), mup(), optax.sgd(0.1), (x, y), steps=1)
    >>> table.layers, table.stats["delta"].shape, abs(fit_slopes(table, fit=slice(None))["h1"].value) < 0.1
    (('h1', 'f'), (6, 2, 2, 2), True)
    """
    where = "coord_check"
    check.require(len(widths) >= 2, where, "widths", "must be two or more", widths)
    for width in widths:
        check.require_integer(where, "widths", width, 1)
    check.require(list(widths) == sorted(set(widths)), where, "widths", "must ascend", widths)
    check.require_integer(where, "steps", steps, 1)
    check.require_integer(where, "seeds", seeds, 1)
    base = widths[0] if base_width is None else base_width
    check.require_integer(where, "base_width", base, 1)
    at_once = seeds_at_once or (1 if platform_of(batch) == "cpu" else seeds)
    check.require_integer(where, "seeds_at_once", at_once, 1)
    keys = jax.random.split(key, seeds)
    x, _ = batch
    probe = x if probe is None else probe
    shapes = {width: jax.eval_shape(make(width)[0], key) for width in {*widths, base, 2 * base}}

    names: tuple[str, ...] = ()
    measured = []
    for width in widths:
        infshapes = infer_infshapes(shapes[base], shapes[2 * base], shapes[width], layout=layout, overrides=overrides)
        init_fn, apply_fn, layers_fn = make(width)
        start = init_transform(p, infshapes)
        here = _names(where, layers_fn, shapes[width], probe)
        check.require(names in ((), here), where, "make", f"must give the layers {names} at each width", here)
        names = here
        run = functools.partial(
            _train,
            init_fn=lambda key, init_fn=init_fn, start=start: start(init_fn(key)),
            apply_fn=apply_fn,
            layers_fn=layers_fn,
            tx=abc_optimizer(tx, p, infshapes),
            output_loss_fn=output_loss_fn,
            steps=steps,
        )
        values, is_finite = jax.device_get(_all_seeds(run, keys, batch, probe, at_once))
        measured.append((values, is_finite))
    stats = {
        name: np.stack([np.asarray(values[name], np.float64) for values, _ in measured], axis=1) for name in STATISTICS
    }
    finite = np.stack([is_finite for _, is_finite in measured], axis=1)
    status = np.where(finite, int(Status.COMPLETED), int(Status.NON_FINITE)).astype(np.int32)
    return CoordTable(tuple(widths), names, stats, p, status)


def _names(where: str, layers_fn: Any, params: PyTree, probe: Any) -> tuple[str, ...]:
    """The layers in the order of the network: read while tracing, as a dictionary returned from a trace is sorted."""
    names: list[str] = []

    def look(*args: Any) -> None:
        layers = layers_fn(*args)
        is_named = isinstance(layers, Mapping) and len(layers) >= 2
        check.require(is_named, where, "make", "must give a dictionary of two layers or more", type(layers).__name__)
        names.extend(layers)

    jax.eval_shape(look, params, probe)
    return tuple(names)


def _all_seeds(run: Any, keys: jax.Array, batch: Any, probe: Any, at_once: int) -> Any:
    def program(keys: jax.Array, batch: Any, probe: Any) -> Any:
        one = lambda key: run(key, batch, probe)  # noqa: E731
        return jax.lax.map(one, keys, batch_size=None if at_once == 1 else at_once)

    return jax.jit(program)(keys, batch, probe)


def _train(
    key: jax.Array,
    batch: Any,
    probe: Any,
    *,
    init_fn: Any,
    apply_fn: Any,
    layers_fn: Any,
    tx: optax.GradientTransformation,
    output_loss_fn: Any,
    steps: int,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """One network: statistics (T + 1, layers) by name, and whether all parameters stayed finite."""
    x, y = batch
    initial = init_fn(key)
    before = layers_fn(initial, probe)

    def step(carry: Any, _: Any) -> tuple[Any, Any]:
        params, state = carry
        gradients = jax.grad(lambda w: output_loss_fn(apply_fn(w, x), y))(params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), _measure(before, layers_fn(params, probe))

    (params, _), later = jax.lax.scan(step, (initial, tx.init(initial)), length=steps)
    sizes = jnp.stack([_rms(h.output if isinstance(h, Linear) else h) for h in before.values()])
    nothing = jnp.where(jnp.isnan(later["dwx"][0]), jnp.nan, jnp.zeros_like(sizes))
    first = {"act": sizes, "delta": jnp.zeros_like(sizes), "dwx": nothing, "w0dx": nothing}
    values = {name: jnp.concatenate([first[name][None], rows]) for name, rows in later.items()}
    return values, tree.all_finite((params, values["delta"]))


def _measure(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The statistics of all layers, (layers,) each."""
    rows = []
    for old, new in zip(before.values(), after.values(), strict=True):
        if isinstance(new, Linear):
            own, through = new.inputs @ (new.kernel - old.kernel), (new.inputs - old.inputs) @ old.kernel
            rows.append((new.output, new.output - old.output, own, through))
        else:
            nothing = jnp.full((), jnp.nan, new.dtype)
            rows.append((new, new - old, nothing, nothing))
    columns = zip(*rows, strict=True)
    return {name: jnp.stack([_rms(h) for h in column]) for name, column in zip(STATISTICS, columns, strict=True)}


def _rms(h: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(h)))


def fit_slopes(
    table: CoordTable, stat: str = "delta", *, step: int = -1, fit: slice = slice(1, None)
) -> dict[str, Slope]:
    """The power of the width by which each layer's statistic grows: least squares of log value on log width, per seed.

    Args:
      table: of `coord_check`.
      stat: "act", "delta", "dwx" or "w0dx".
      step: after how many steps; -1 is the last.
      fit: which of the widths; the default leaves the narrowest out, two or more are needed.

    Returns:
      By layer a `Slope`, the mean over seeds and its standard error (seeds are independent at every width).

    >>> from jflat.width.parametrisation import mup
    >>> values = np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> round(fit_slopes(CoordTable((8, 16, 32), ("h",), {"act": values}, mup(), values), "act")["h"].value, 6)
    1.0
    """
    check.require_choice("fit_slopes", "stat", stat, table.stats)
    values = table.stats[stat][:, fit, step]
    widths = np.log(np.asarray(table.widths[fit], np.float64))
    check.require(len(widths) >= 2, "fit_slopes", "fit", "must leave two widths or more", table.widths[fit])
    known = np.isfinite(values) & (values > 0)
    centred = widths - widths.mean()
    slopes = np.einsum("w,swl->sl", centred, np.log(np.where(known, values, 1.0))) / np.sum(centred**2)
    slopes = np.where(known.all(axis=1), slopes, np.nan)
    mean = slopes.mean(axis=0)
    stderr = slopes.std(axis=0, ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.full_like(mean, np.nan)
    return {name: Slope(float(m), float(s)) for name, m, s in zip(table.layers, mean, stderr, strict=True)}


def predicted_slopes(table: CoordTable, stat: str = "delta", *, step: int = -1) -> dict[str, Fraction | None]:
    """The exponents of `classify` by layer: those of the first step at step 1; None where nothing is predicted.

    The layers of the table are read as h^1, ..., h^L, f of a chain. Biases change none of these exponents (but that of
    an output with a bias is at least 0).
    """
    check.require_choice("predicted_slopes", "stat", stat, ("delta", "dwx", "w0dx"))
    times = range(table.stats[stat].shape[2])
    result = classify(table.parametrisation, len(table.layers) - 1)
    slopes = result.first_slopes if times[step] == 1 else result.slopes
    return dict(zip(table.layers, getattr(slopes, stat), strict=True))


def assert_exponents(
    table: CoordTable,
    predicted: Mapping[str, float | Fraction | None] | None = None,
    *,
    stat: str = "delta",
    atol: float = 0.1,
    step: int = -1,
    fit: slice = slice(1, None),
) -> None:
    """Raise `AssertionError` unless each measured slope is the predicted one: the line for a project's own tests.

    Args:
      table: of `coord_check`.
      predicted: by layer, for networks that are no chain; None is `predicted_slopes`. None for a layer: not compared.
      stat, step, fit: as in `fit_slopes`.
      atol: largest difference; 0.1 tells the exponents 0, 1/4, 1/2 apart. One that the standard error makes unsafe is
        a failure too, so use more seeds or widths and not a larger one.

    Raises:
      AssertionError: naming each layer that differs, its slope with standard error, and the prediction.
      ValueError: for a layer that the table does not have.
    """
    wanted = predicted_slopes(table, stat, step=step) if predicted is None else predicted
    unknown = sorted(set(wanted) - set(table.layers))
    check.require(not unknown, "assert_exponents", "predicted", f"must name layers among {table.layers}", unknown)
    measured = fit_slopes(table, stat, step=step, fit=fit)
    wrong = [
        f"{name}: slope {measured[name].value:.3f} +- {measured[name].stderr:.3f}, predicted {float(value):.3f}"
        for name, value in wanted.items()
        if value is not None and not abs(measured[name].value - float(value)) <= atol
    ]
    if wrong:
        raise AssertionError(f"{stat} does not scale with width as predicted (atol {atol}): " + "; ".join(wrong))
