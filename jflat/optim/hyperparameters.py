"""What the transformations of this package share: numbers that may be schedules, keys, and noise.

A hyperparameter is a Python number, a traced scalar (as `optax.inject_hyperparams` gives) or a schedule `count ->
scalar`. Arithmetic on them is done in at least float32 and the result is cast to each leaf's dtype where it is used, so
bfloat16 parameters stay bfloat16 under strict promotion. Only a Python (or NumPy) number can be seen as zero while
tracing, and only then is the code for it left out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core import check, tree

__all__ = [
    "AxisName",
    "PyTree",
    "ScalarOrSchedule",
    "apply",
    "copy",
    "implicit_share",
    "is_key",
    "is_number",
    "move_towards",
    "noisy",
    "require_grad_fn",
    "require_params",
    "typed_key",
    "value_at",
    "wide_dtype",
]

PyTree = Any
AxisName = str | Sequence[str]
ScalarOrSchedule = float | jax.Array | Callable[[Any], Any]


def is_number(value: Any, number: float) -> bool:
    """Whether `value` is a host number equal to `number`: the only thing that may change what is traced."""
    return isinstance(value, int | float | np.integer | np.floating) and bool(value == number)


def wide_dtype(a: PyTree) -> Any:
    """float64 if any leaf is, else float32: what scalars and sums over replicas are computed in."""
    return jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(a)) else jnp.float32


def value_at(value: ScalarOrSchedule, count: Any, like: PyTree) -> jax.Array:
    """The hyperparameter at `count`, a scalar of `wide_dtype(like)`."""
    return jnp.asarray(value(count) if callable(value) else value).astype(wide_dtype(like))


def is_key(leaf: Any) -> bool:
    """Whether an array is an array of typed PRNG keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def typed_key(where: str, key: Any) -> jax.Array:
    """A typed key from a typed key or from an integer seed (host or traced)."""
    if is_key(key):
        check.require(jnp.shape(key) == (), where, "key", "must be one key", f"shape {jnp.shape(key)}")
        return key
    is_seed = jnp.shape(key) == () and jnp.issubdtype(jnp.result_type(key), jnp.integer)
    check.require(is_seed, where, "key", "must be a jax.random.key or an integer seed", key)
    return jax.random.key(key)


def noisy(key: jax.Array, std: jax.Array, a: PyTree, axis_name: AxisName | None) -> PyTree:
    """a + std * N(0, 1); the index along `axis_name` is folded into the key, so replicas get different noise."""
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    return tree.add_scaled(a, std, tree.random_normal(key, a))


def apply(params: PyTree, updates: PyTree) -> PyTree:
    """params + updates, in the dtype of params."""
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def move_towards(a: PyTree, target: PyTree, share: Any) -> PyTree:
    """a + share (target - a): unlike (1 - share) a + share target it stays where a = target, in bfloat16 too."""
    return tree.add_scaled(a, share, tree.subtract(target, a))


def implicit_share(stiffness: jax.Array) -> jax.Array:
    """s/(1 + s), the share of the gap that an implicit elastic step closes; 1 at s = inf."""
    return jnp.where(jnp.isinf(stiffness), 1, stiffness / (1 + stiffness))


def copy(params: PyTree) -> PyTree:
    """New buffers, so that a state that starts from the parameters survives their donation."""
    return jax.tree.map(jnp.copy, params)


def require_params(where: str, params: PyTree | None) -> None:
    """Refuse an update without parameters."""
    check.require(params is not None, where, "params", "must be passed to update", None)


def require_grad_fn(where: str, grad_fn: Any, params: PyTree) -> None:
    """Refuse an update without `grad_fn`, and one inside `optax.masked`: `grad_fn` needs the complete tree."""
    require_params(where, params)
    check.require(
        callable(grad_fn), where, "grad_fn", "must be passed to update, a function (params, i) -> grads", grad_fn
    )
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    masked = any(isinstance(x, optax.MaskedNode) for x in leaves)
    rule = (
        "must be the complete tree, because grad_fn needs it: use this transformation's mask= instead of optax.masked"
    )
    check.require(not masked, where, "params", rule + " or optax.partition", "a tree with masked leaves")
