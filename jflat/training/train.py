"""Training as one pure function of a key: batches drawn on the device, any optax chain, replicas.

    train = make_train(loss_fn, init_fn, tx, data, num_steps=1000, batch_size=64)
    result = jax.jit(train)(key)                        # one seed
    results = jax.jit(jax.vmap(train))(keys)            # many seeds in one program; `train_seeds` adds checkpoints
    result = train(key)                                 # the same, stepped from the host where that is faster

One update of replica a draws the next `batches_per_update` batches of its own stream, takes the gradient of the first
at the current parameters, and gives `tx.update` besides it the extra arguments `value` (the loss) and
`grad_fn(params, i)` (the gradient at other parameters on batch i of this update: SAM, local-entropy gradients).
Replicas are a `vmap` of that update with the axis name "replica", so `couple_replicas(..., axis_name="replica")` in the
chain couples them.

The stream of a replica goes through a fresh permutation of the data per epoch (the last M mod B samples of each are
left out), a pure function of (key, replica, epoch): a resumed run needs no iterator state. The permutations of a run of
steps are drawn before its loop, so no random number generator runs (or is compiled) inside the step.

Random keys in the optimiser's state (Langevin noise) are folded with the seed and the replica, so that each has its own
noise although all come from one transformation. So has each batch for its augmentation: a key that is a pure function
of (key, replica, number of the batch), drawn before the loop; whatever gradient reads the batch sees the same images.

Cost: the gradients, plus one permutation of M per epoch and replica. Memory per replica and seed: parameters, optimiser
and model state (twice in a step, because a failed one is undone), and the sample indices of one interval, 4 bytes for
each of `num_steps / num_evals * batches_per_update * B`: for long runs on large data take more than one evaluation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.data import mean_over_batches, num_samples, split_batches
from jflat.optim import barycenter, replica_distances
from jflat.optim.hyperparameters import is_key
from jflat.training.run import Draws, History, Train, TrainState

__all__ = ["make_train", "reestimate_statistics"]

PyTree = Any


def reestimate_statistics(
    statistics_fn: Callable[[PyTree, PyTree], PyTree], params: PyTree, data: PyTree, batch_size: int
) -> PyTree:
    """Model state (batch-norm statistics) of given parameters: the average of `statistics_fn` over the data.

    An anchor of Entropy-SGD or a barycentre of replicas has never been trained at, so running averages are not its
    statistics. The average runs over batches of `batch_size`, weighted by their sizes (variances: within batches).

    Args:
      statistics_fn: (params, batch) -> the model state of that batch alone (momentum 0).
      params: the parameters to estimate for.
      data: pytree of arrays (M, ...).
      batch_size: B, as in training, because the within-batch variance depends on it.
    """
    return mean_over_batches(lambda batch: statistics_fn(params, batch), split_batches(data, batch_size))


def _batch_indices(key: jax.Array, first_batch: jax.Array, num_batches: int, total: int, batch_size: int) -> jax.Array:
    """Sample indices (num_batches, B) of a stream from batch number `first_batch` on: a permutation of M per epoch."""
    per_epoch = total // batch_size
    numbers = first_batch + jnp.arange(num_batches)
    first_epoch = first_batch // per_epoch
    num_epochs = (num_batches + per_epoch - 2) // per_epoch + 1  # an unaligned piece touches at most so many

    def shuffled(epoch: jax.Array) -> jax.Array:
        permutation = jax.random.permutation(jax.random.fold_in(key, epoch), total)
        return permutation[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    batches = jax.vmap(shuffled)(first_epoch + jnp.arange(num_epochs)).reshape(-1, batch_size)
    return batches[numbers - first_epoch * per_epoch]


def _own_keys(key: jax.Array, opt_state: PyTree) -> PyTree:
    """The state with `key` folded into each typed key in it."""

    def own(leaf: jax.Array) -> jax.Array:
        salt = jax.random.bits(key)
        return jax.vmap(lambda k: jax.random.fold_in(k, salt))(leaf.reshape(-1)).reshape(leaf.shape)

    return jax.tree.map(lambda leaf: own(leaf) if is_key(leaf) else leaf, opt_state)


def make_train(
    loss_fn: Callable[..., Any],
    init_fn: Callable[[jax.Array], Any],
    tx: optax.GradientTransformation,
    data: PyTree,
    *,
    num_steps: int,
    batch_size: int,
    num_evals: int = 1,
    metrics_fn: Callable[..., dict[str, jax.Array]] | None = None,
    has_model_state: bool = False,
    statistics_fn: Callable[[PyTree, PyTree], PyTree] | None = None,
    augment_fn: Callable[[jax.Array, PyTree], PyTree] | None = None,
    num_replicas: int | None = None,
    replica_init: str = "independent",
    batches_per_update: int = 1,
    gradients_per_update: int | None = None,
    eval_params_fn: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Train:
    """Build a training run `train(key) -> TrainResult`.

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample; with `has_model_state`,
        (params, model_state, batch) -> (scalar, new model_state).
      init_fn: key -> params; with `has_model_state`, key -> (params, model_state).
      tx: any optax transformation of one replica (extra arguments `value` and `grad_fn` are offered to it).
      data: pytree of arrays (M, ...), kept on the device; a batch has the same tree with leaves (B, ...).
      num_steps: updates in all, a multiple of `num_evals`.
      batch_size: B, in [1, M].
      num_evals: how many times, evenly spaced and at the end, the metrics are taken.
      metrics_fn: params -> dict of arrays (with `has_model_state`: (params, model_state) -> dict), at the solution so
        far. Give it its data as a `jax.tree_util.Partial`, which travels with the run and is not compiled in.
      has_model_state: whether the loss carries a model state such as batch-norm statistics.
      statistics_fn: (params, batch) -> model state of that batch alone; where given, the state of the evaluated
        parameters is re-estimated over `data` (`reestimate_statistics`).
      augment_fn: (key, batch) -> batch, applied to each batch that is trained on, inside the step (data augmentation
        such as `jflat.data.random_crop_flip`). Metrics and re-estimated statistics see the data as they are.
      num_replicas: R replicas with independent batch streams along a vmapped axis named "replica"; None for a single
        network with no such axis.
      replica_init: "independent" (a key each, as in Replicated-SGD) or "identical".
      batches_per_update: fresh batches that one update may use through `grad_fn(params, i)`, i in [0, that); a larger i
        is given the last of them. For `local_entropy_gradient` take its `num_inner`.
      gradients_per_update: gradient evaluations of one update of one replica, for the budget; default
        `batches_per_update` (SAM: 2, on one batch).
      eval_params_fn: (opt_state, params) -> the parameters to evaluate, for one replica, e.g. `entropy_eval_params`.

    Returns:
      A `Train`. A step whose loss or new parameters are not finite is undone and the seed stays where it was:
      `failed_step` says when, its later train_loss is NaN, and other seeds of a `vmap` go on.

    Raises:
      ValueError: for sizes out of range, or a loss that is not scalar.

    Example (least squares on four points, whose minimum is w = 2):

      >>> x = jnp.arange(1.0, 5.0)
      >>> loss_fn = lambda w, batch: 0.5 * jnp.mean((w * batch[0] - batch[1]) ** 2)
      >>> train = make_train(loss_fn, lambda key: jnp.zeros(()), optax.sgd(0.1), (x, 2 * x), num_steps=50, batch_size=4)
      >>> jax.jit(train)(jax.random.key(0)).params.round(3)
      Array(2., dtype=float32)
    """
    total = num_samples(data)
    check.require_integer("make_train", "num_evals", num_evals, 1)
    check.require_integer("make_train", "num_steps", num_steps, 1)
    rule = f"must be a multiple of num_evals = {num_evals}"
    check.require(num_steps % num_evals == 0, "make_train", "num_steps", rule, num_steps)
    check.require_integer("make_train", "batch_size", batch_size, 1, total)
    check.require_integer("make_train", "batches_per_update", batches_per_update, 1)
    if num_replicas is not None:
        check.require_integer("make_train", "num_replicas", num_replicas, 1)
    if gradients_per_update is not None:
        check.require_integer("make_train", "gradients_per_update", gradients_per_update, 1)
    check.require_choice("make_train", "replica_init", replica_init, ("independent", "identical"))
    needs_state = statistics_fn is None or has_model_state
    check.require(needs_state, "make_train", "statistics_fn", "needs has_model_state=True", "False")
    gradients = batches_per_update if gradients_per_update is None else gradients_per_update
    eval_every = num_steps // num_evals
    chain = optax.with_extra_args_support(tx)

    def stateful_loss(params: PyTree, model_state: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        value, new_state = loss_fn(params, model_state, batch) if has_model_state else (loss_fn(params, batch), {})
        check.require_scalar("make_train", "loss_fn", value)
        return value, new_state

    def init_one(key: jax.Array, noise_key: jax.Array) -> tuple[PyTree, PyTree, PyTree]:
        params, model_state = init_fn(key) if has_model_state else (init_fn(key), {})
        return params, model_state, _own_keys(noise_key, chain.init(params))

    def update_one(
        data: PyTree, params: PyTree, model_state: PyTree, opt_state: PyTree, drawn: Draws
    ) -> tuple[Any, ...]:
        """One update of one replica."""

        def take(i: Any) -> PyTree:
            batch = jax.tree.map(lambda x: x[drawn.indices[i]], data)
            return batch if augment_fn is None or drawn.keys is None else augment_fn(drawn.keys[i], batch)

        (value, new_model_state), grads = jax.value_and_grad(stateful_loss, has_aux=True)(params, model_state, take(0))

        def grad_fn(at: PyTree, i: Any) -> PyTree:
            batch = take(jnp.minimum(i, batches_per_update - 1))
            return jax.grad(stateful_loss, has_aux=True)(at, model_state, batch)[0]

        updates, opt_state = chain.update(grads, opt_state, params, value=value, grad_fn=grad_fn)
        return value, optax.apply_updates(params, updates), new_model_state, opt_state

    def init(key: jax.Array) -> TrainState:
        noise_key = jax.random.fold_in(key, 2**31 - 2)
        if num_replicas is None:
            params, model_state, opt_state = init_one(key, noise_key)
        else:
            identical = replica_init == "identical"
            replicas = jnp.arange(num_replicas)
            keys = jax.vmap(lambda a: jax.random.fold_in(key, a))(jnp.zeros_like(replicas) if identical else replicas)
            noise_keys = jax.vmap(lambda a: jax.random.fold_in(noise_key, a))(replicas)
            params, model_state, opt_state = jax.vmap(init_one, axis_name="replica")(keys, noise_keys)
        return TrainState(jnp.int32(0), key, params, model_state, opt_state, jnp.int32(-1))

    def streams(state: TrainState) -> Draws:
        """What the next piece draws."""
        first, number = state.step * batches_per_update, eval_every * batches_per_update
        data_key = jax.random.fold_in(state.key, 2**31 - 1)  # apart from the replicas' initial keys

        def stream(replica: jax.Array) -> Draws:
            key, keys = jax.random.fold_in(data_key, replica), None
            indices = _batch_indices(key, first, number, total, batch_size)
            if augment_fn is not None:
                augment_key = jax.random.fold_in(key, 2**31 - 1)  # apart from the epochs'
                keys = jax.vmap(lambda n: jax.random.fold_in(augment_key, n))(first + jnp.arange(number))
                keys = keys.reshape(eval_every, batches_per_update)
            return Draws(indices.reshape(eval_every, batches_per_update, batch_size), keys)

        if num_replicas is None:
            return stream(jnp.int32(0))
        return jax.vmap(stream, out_axes=1)(jnp.arange(num_replicas))

    update = update_one
    if num_replicas is not None:
        update = jax.vmap(update_one, in_axes=(None, 0, 0, 0, 0), axis_name="replica")

    def step(data: PyTree, state: TrainState, drawn: Draws) -> tuple[TrainState, jax.Array]:
        old = (state.params, state.model_state, state.opt_state)
        value, *new = update(data, *old, drawn)
        if num_replicas is None:
            finite = tree.all_finite(tuple(new[:2]))
        else:  # one sum over the replicas for both: over processes every sum is a meeting
            broken = ~jax.vmap(tree.all_finite)(tuple(new[:2]))
            value, broken = jnp.mean(jnp.stack([value, broken.astype(value.dtype)]), axis=1)
            finite = broken == 0
        finite &= jnp.isfinite(value)
        alive = finite & (state.failed_step < 0)
        failed_step = jnp.where((state.failed_step < 0) & ~finite, state.step, state.failed_step)
        params, model_state, opt_state = tree.where(alive, tuple(new), old)
        new_state = TrainState(state.step + 1, state.key, params, model_state, opt_state, failed_step)
        return new_state, jnp.where(alive, value, jnp.nan)

    def judged(state: TrainState) -> PyTree:
        """The parameters to evaluate, of each replica."""
        if eval_params_fn is None:
            return state.params
        evaluate = eval_params_fn if num_replicas is None else jax.vmap(eval_params_fn)
        return evaluate(state.opt_state, state.params)

    def solution(arrays: PyTree, state: TrainState) -> tuple[PyTree, PyTree]:
        params, model_state = judged(state), state.model_state
        if num_replicas is not None:
            params, model_state = barycenter(params), jax.tree.map(lambda x: jnp.mean(x, axis=0), model_state)
        if statistics_fn is not None:
            model_state = reestimate_statistics(statistics_fn, params, arrays[0], batch_size)
        return params, model_state

    def record(arrays: PyTree, state: TrainState, losses: jax.Array) -> History:
        values = {
            "step": state.step,
            "train_loss": jnp.mean(losses),
            "gradient_evaluations": state.step * gradients * (num_replicas or 1),
        }
        if num_replicas is not None:
            values["replica_distance"] = jnp.mean(replica_distances(judged(state)) ** 2)
        if has_metrics:
            params, model_state = solution(arrays, state)
            values |= arrays[1](params, model_state) if has_model_state else arrays[1](params)
        return values

    has_metrics = metrics_fn is not None
    metrics = metrics_fn if isinstance(metrics_fn, jax.tree_util.Partial) else jax.tree_util.Partial(metrics_fn or dict)
    arrays, sizes = jax.tree.map(jnp.asarray, data), (num_steps, num_evals, num_replicas, batch_size)
    return Train((arrays, metrics), init, *sizes, batches_per_update, streams, step, record, solution)
