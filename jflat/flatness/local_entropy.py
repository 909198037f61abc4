r"""Local entropy: the free energy of the loss in a Gaussian window around the weights, by sampling.

    F(w) = -(1/beta) log E exp(-beta L(w')),   w' ~ N(w, 1/(beta gamma)),        grad F = gamma (w - <w'>)

is the local-entropy loss -(1/beta) log Int dw' exp(-beta L(w') - (beta gamma/2) |w' - w|^2) of Entropy-SGD
(1611.01838) and of 2006.07897, normalised by its Gaussian: a constant loss has F = L. A wide flat minimum has F near
L(w), a sharp one has F above it. With <.>_s the mean under exp(-beta s L(w')) N(w'; w, 1/(beta gamma)),

    F = Int_0^1 <L>_s ds,      <L>_1 <= F <= <L>_0,      F = <L>_1 + (1/beta) KL(Gibbs_1 || Gaussian).

**Value**: thermodynamic integration, Gauss-Legendre in u with s = u^3. The cube resolves the fast decay of <L>_s at
small s: on a quadratic with curvature a, 8 nodes have a relative error below 1e-5 for a/gamma <= 10, 3e-4 at 100,
7e-3 at 1000, 4e-2 at 1e5 (with s = u it would be 6e-5, 4e-2, 0.23, 0.53). C independent chains start with exact
draws at s = 0 and go up through the nodes to s = 1, so flat directions are in equilibrium from the start.

**Sampling**: Hamiltonian Monte Carlo in which the Gaussian part is exact. In x = w' - w with a momentum p drawn
afresh from the same Gaussian N(0, 1/(beta gamma)), each of the `num_leapfrog` steps of a trajectory is

    p <- p - tan(a/2) (s/gamma) grad L(w + x)                      half a kick
    (x, p) <- (x cos a + p sin a, p cos a - x sin a)               the Gaussian's own motion, exact
    p <- p - tan(a/2) (s/gamma) grad L(w + x)                      half a kick

and a Metropolis test accepts its end or not. At s = 0 nothing is ever rejected, whatever P, and a trajectory of a
quarter turn is a fresh draw; only directions in which the data speak shorten the angle. With one leapfrog step this
is the Langevin step of Cotter et al. (1202.0709, there with cos a = (2 - delta)/(2 + delta)), with more that of
Beskos et al. (Stoch. Proc. Appl. 121 (2011) 2201): five steps forget a direction of curvature c in sqrt(c/gamma)
gradients instead of c/gamma. The angle makes no bias; it is tuned to an acceptance of 0.8 in the burn-in of every
node, then held, but for a random factor in [0.5, 1.5] per trajectory against resonances.

**Gradient**: at s = 1, <gamma (w - w') - grad L> = 0 (integration by parts), so the mean of either is grad F. The
former is the better in stiff directions, the latter in flat ones; the mixture with the least spread over the chains
is returned.

**Error**: chains are independent, so their spread gives the standard error, autocorrelations included. What it
cannot see, a burn-in that was too short, shows in part in `drift`. Measured in 20 dimensions with curvatures from
0.1 gamma to c gamma, many deviations from the minimum, at the default budget of 100 gradients per node and chain:
the bias, in units of the reported stderr (mean of 32 runs), is 0.0, 0.2, 0.2 and 1.8 at c = 1, 10, 100 and 1000;
with one leapfrog step -0.2, -0.2, 1.1 and 3.6. So beyond c = 1000 spend more steps per node.

Differs from the running mean of Entropy-SGD (`jflat.optim`), a few inner steps that give a direction, not a number;
and from the Monte-Carlo "local entropy" of LPF-SGD's code, which has another width, sign and constant.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check, tree
from jflat.curvature.trace import mean_and_stderr
from jflat.data import Batches, mean_over_batches

__all__ = ["LocalEntropyResult", "local_entropy"]

PyTree = Any

_TARGET_ACCEPTANCE = 0.8
_LEAST_ACCEPTANCE = 0.05
_JITTER = 0.5


class LocalEntropyResult(NamedTuple):
    """The local entropy at one point, in the loss's unit; NaN where the status is NON_FINITE. K = num_nodes."""

    value: jax.Array
    """(): F(w)."""
    stderr: jax.Array
    """(): one standard error of `value`, from the spread of the chains."""
    gradient: PyTree
    """grad F = gamma (w - <w'>), like the parameters."""
    gradient_stderr: jax.Array
    """(): the expected length of the error of `gradient`, sqrt(sum of its entries' squared standard errors). The
    mixture is fitted on the same chains: with P (C - 1) below about 10, parameters times chains, it is too small."""
    squared_distance: jax.Array
    """(): <|w' - w|^2> at s = 1; P/(beta gamma) for a constant loss, less where the loss confines."""
    couplings: jax.Array
    """(K + 1,): s, the nodes and then 1."""
    energies: jax.Array
    """(K + 1,): <L>_s."""
    energies_stderr: jax.Array
    """(K + 1,): one standard error of each, from the spread of the chains."""
    acceptance: jax.Array
    """(K + 1,): part of the trajectories accepted after burn-in; 1 where the loss hardly matters, else about 0.8."""
    step_size: jax.Array
    """(K + 1,): (1 - cos a)/gamma after burn-in, mean over chains: the learning rate of one leapfrog step."""
    drift: jax.Array
    """(): F from the second half of each stage minus F from the first; its error is about 2 `stderr`. Beyond, burn
    in longer."""
    num_gradients: int
    """Gradient evaluations."""
    status: jax.Array
    """int32: COMPLETED, STAGNATION (some stage accepts less than 5%: the chains do not move) or NON_FINITE."""


class _Chain(NamedTuple):
    point: PyTree  # x = w' - w
    loss: jax.Array  # L(w + x)
    gradient: PyTree
    log_angle: jax.Array  # log a, before the jitter


class _Sums(NamedTuple):
    losses: jax.Array  # (2,): first and second half
    acceptance: jax.Array
    point: PyTree
    gradient: PyTree
    squared_distance: jax.Array


def local_entropy(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    batches: PyTree | Batches,
    key: jax.Array,
    *,
    gamma: float | jax.Array,
    beta: float | jax.Array,
    num_steps: int = 12,
    burn_in: int = 8,
    num_leapfrog: int = 5,
    num_chains: int = 8,
    num_nodes: int = 8,
    chunk_size: int | None = None,
) -> LocalEntropyResult:
    """The local entropy F(w) = -(1/beta) log E_{w' ~ N(w, 1/(beta gamma))} exp(-beta L(w')), with errors.

    Args:
      loss_fn: (params, batch) -> scalar L, the mean per sample. Batch statistics are frozen.
      params: w, a pytree of real floating-point arrays; P scalars.
      batches: one batch, or a `jflat.data.Batches`. Every step takes the gradient over all of it (the test needs L).
      key: typed PRNG key; with one key for all models they share the noise.
      gamma: force constant, above 0. The window has standard deviation 1/sqrt(beta gamma) in each weight.
      beta: inverse temperature, above 0, in 1/loss. Entropy-SGD with thermal noise eps runs at beta = 1/eps^2.
      num_steps: trajectories per stage that count, at least 2.
      burn_in: trajectories per stage before them, at least 1, in which the angle adapts.
      num_leapfrog: gradients per trajectory, at least 1; 1 is Metropolis-adjusted Langevin.
      num_chains: C independent chains, at least 2.
      num_nodes: K, nodes of the integration, at least 1.
      chunk_size: chains run at once (`jax.lax.map(..., batch_size)`); None is one after the other.

    Returns:
      A `LocalEntropyResult`.

    Raises:
      ValueError: if an argument is out of range or the loss is not one real scalar.

    Accuracy: see above for the quadrature, the burn-in and what shows it. Several basins in the window are weighted
    rightly only as far as chains cross or start in them. The Metropolis test subtracts losses, so beta L times the
    machine epsilon must be well below 1. With C chains `stderr` itself is uncertain by a part 1/sqrt(2C - 2). Points
    where the loss is infinite or NaN are never entered.

    Cost: C ((K + 1) (burn_in + num_steps) num_leapfrog + 1) gradients over the data (7,208 by default); ten copies
    of the parameters per chain run at once.

    Reference: Chaudhari et al., 1611.01838 (there unnormalised, at beta = 1 and with the opposite sign).

    Example: L = a w^2 / 2 at 0 has F = log(1 + a/gamma) / (2 beta).

    >>> loss_fn = lambda w, a: 0.5 * jnp.sum(a * w**2)
    >>> f = local_entropy(loss_fn, jnp.zeros(1), 3.0, jax.random.key(0), gamma=1.0, beta=1.0)
    >>> bool(abs(f.value - jnp.log(4.0) / 2) < 3 * f.stderr), bool(f.stderr < 0.1)
    (True, True)
    """
    where = "local_entropy"
    check.require_floating(where, "params", params)
    check.require_number(where, "gamma", gamma, 0.0, exclusive=True)
    check.require_number(where, "beta", beta, 0.0, exclusive=True)
    for name, count in {"num_steps": num_steps, "num_chains": num_chains}.items():
        check.require_integer(where, name, count, 2)
    for name, count in {"burn_in": burn_in, "num_leapfrog": num_leapfrog, "num_nodes": num_nodes}.items():
        check.require_integer(where, name, count, 1)
    if chunk_size is not None:
        check.require_integer(where, "chunk_size", chunk_size, 1)

    loss_type = jax.eval_shape(lambda p: mean_over_batches(lambda b: loss_fn(p, b), batches), params)
    check.require_scalar(where, "loss_fn", loss_type)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves((loss_type, params))]
    dtype = functools.reduce(np.promote_types, dtypes, np.dtype(np.float32))
    wide = jax.tree.map(lambda w: w.astype(dtype), params)  # chains move in at least float32
    gamma, beta = jnp.asarray(gamma, dtype), jnp.asarray(beta, dtype)
    width = 1 / jnp.sqrt(beta * gamma)
    largest = jnp.log(jnp.asarray(np.pi / 2 / num_leapfrog, dtype))
    abscissae, legendre_weights = np.polynomial.legendre.leggauss(num_nodes)
    nodes = (abscissae + 1) / 2
    couplings = jnp.asarray(np.append(nodes**3, 1.0), dtype)
    weights = jnp.asarray(3 * nodes**2 * legendre_weights / 2, dtype)

    def loss_and_gradient(point: PyTree) -> tuple[jax.Array, PyTree]:
        at = jax.tree.map(lambda w, origin, x: (origin + x).astype(w.dtype), params, wide, point)
        loss, gradient = mean_over_batches(lambda batch: jax.value_and_grad(loss_fn)(at, batch), batches)
        return loss.astype(dtype), jax.tree.map(lambda g: g.astype(dtype), gradient)

    def step(s: jax.Array, carry: tuple[_Chain, _Sums], inputs: tuple[jax.Array, jax.Array]) -> tuple:
        chain, sums = carry
        index, key = inputs
        momentum_key, jitter_key, test_key = jax.random.split(key, 3)
        momentum = tree.scale(width, tree.random_normal(momentum_key, wide))
        angle = jnp.exp(chain.log_angle) * jax.random.uniform(jitter_key, (), dtype, 1 - _JITTER, 1 + _JITTER)
        proposal, growth = _propose(loss_and_gradient, chain, momentum, angle, num_leapfrog, s / gamma)
        log_ratio = beta * (s * (chain.loss - proposal.loss) - gamma / 2 * growth)
        log_ratio = jnp.where(jnp.isfinite(proposal.loss) & ~jnp.isnan(log_ratio), log_ratio, -jnp.inf)
        probability = jnp.exp(jnp.minimum(log_ratio, 0))
        chain = tree.where(jax.random.uniform(test_key, dtype=dtype) < probability, proposal, chain)

        adapts = index < burn_in
        rate = (index + 1).astype(dtype) ** -0.6
        log_angle = jnp.minimum(chain.log_angle + rate * (probability - _TARGET_ACCEPTANCE), largest)
        chain = chain._replace(log_angle=jnp.where(adapts, log_angle, chain.log_angle))
        half = jnp.where(index < burn_in + num_steps // 2, 0, 1)
        following = _Sums(
            losses=sums.losses.at[half].add(chain.loss),
            acceptance=sums.acceptance + probability,
            point=tree.add(sums.point, chain.point),
            gradient=tree.add(sums.gradient, chain.gradient),
            squared_distance=sums.squared_distance + tree.squared_norm(chain.point).astype(dtype),
        )
        return (chain, tree.where(adapts, sums, following)), None

    def stage(carry: tuple[_Chain, PyTree], inputs: tuple[jax.Array, jax.Array]) -> tuple[tuple[_Chain, PyTree], dict]:
        chain, _ = carry
        s, key = inputs
        zero = jnp.zeros((), dtype)
        sums = _Sums(jnp.zeros(2, dtype), zero, tree.zeros_like(wide), tree.zeros_like(wide), zero)
        indices = jnp.arange(burn_in + num_steps, dtype=jnp.int32)
        keys = jax.random.split(key, indices.size)
        (chain, sums), _ = jax.lax.scan(lambda c, i: step(s, c, i), (chain, sums), (indices, keys))
        halves = jnp.asarray([num_steps // 2, num_steps - num_steps // 2], dtype)
        numbers = {
            "energy": jnp.sum(sums.losses) / num_steps,
            "halves": sums.losses / halves,
            "acceptance": sums.acceptance / num_steps,
            "step_size": (1 - jnp.cos(jnp.exp(chain.log_angle))) / gamma,
            "squared_distance": sums.squared_distance / num_steps,
        }
        pull = tree.scale(-gamma / num_steps, sums.point)
        return (chain, (pull, tree.scale(1 / num_steps, sums.gradient))), numbers

    def run_chain(key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        start_key, key = jax.random.split(key)
        point = tree.scale(width, tree.random_normal(start_key, wide))
        chain = _Chain(point, *loss_and_gradient(point), largest)
        keys = jax.random.split(key, couplings.size)
        (_, forces), numbers = jax.lax.scan(stage, (chain, (point, point)), (couplings, keys))
        return forces, numbers

    forces, chains = jax.lax.map(run_chain, jax.random.split(key, num_chains), batch_size=chunk_size)
    energies, energies_stderr = mean_and_stderr(chains["energy"])
    value, stderr = mean_and_stderr(jnp.sum(chains["energy"][:, :-1] * weights, axis=1))
    by_halves = jnp.sum(jnp.mean(chains["halves"], axis=0)[:-1] * weights[:, None], axis=0)
    gradient, gradient_stderr = _combine(*forces)
    acceptance = jnp.mean(chains["acceptance"], axis=0)

    finite = tree.all_finite((params, forces)) & jnp.isfinite(value) & jnp.isfinite(energies[-1])
    moves = jnp.min(acceptance) >= _LEAST_ACCEPTANCE
    status = jnp.where(finite, jnp.where(moves, Status.COMPLETED, Status.STAGNATION), Status.NON_FINITE)

    def known(x: jax.Array) -> jax.Array:
        return jnp.where(finite, x, jnp.nan)

    return LocalEntropyResult(
        value=known(value),
        stderr=known(stderr),
        gradient=jax.tree.map(lambda g, w: known(g).astype(w.dtype), gradient, params),
        gradient_stderr=known(gradient_stderr.astype(dtype)),
        squared_distance=known(jnp.mean(chains["squared_distance"][:, -1])),
        couplings=couplings,
        energies=known(energies),
        energies_stderr=known(energies_stderr),
        acceptance=acceptance,
        step_size=jnp.mean(chains["step_size"], axis=0),
        drift=known(by_halves[1] - by_halves[0]),
        num_gradients=num_chains * (couplings.size * (burn_in + num_steps) * num_leapfrog + 1),
        status=status.astype(jnp.int32),
    )


def _combine(pull: PyTree, slope: PyTree) -> tuple[PyTree, jax.Array]:
    """From gamma (w - w') and grad L, averaged in each chain (leading axis): their best mixture, and its error."""

    def centred(x: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - jnp.mean(leaf, axis=0), x)

    difference = tree.subtract(slope, pull)  # of mean zero at s = 1
    spread = centred(difference)
    variance = tree.squared_norm(spread)
    share = -tree.inner(centred(pull), spread) / jnp.where(variance > 0, variance, 1)
    mixture = tree.add_scaled(pull, jnp.clip(share, 0, 1), difference)
    mean, error = (jax.tree.map(lambda x, i=i: mean_and_stderr(x)[i], mixture) for i in (0, 1))
    return mean, tree.norm(error)


def _propose(
    loss_and_gradient: Callable[[PyTree], tuple[jax.Array, PyTree]],
    chain: _Chain,
    momentum: PyTree,
    angle: jax.Array,
    num_leapfrog: int,
    force: jax.Array,
) -> tuple[_Chain, jax.Array]:
    """The end of a trajectory, and by how much |x|^2 + |p|^2 has grown.

    The growth is summed over the kicks, since rotations have none: a difference of two sums of P terms would lose it to
    rounding.
    """
    factor = -jnp.tan(angle / 2) * force
    cosine, sine = jnp.cos(angle), jnp.sin(angle)

    def kick(momentum: PyTree, gradient: PyTree) -> tuple[PyTree, jax.Array]:
        along, square = tree.inner(momentum, gradient), tree.squared_norm(gradient)
        growth = factor * (2 * along.astype(factor.dtype) + factor * square.astype(factor.dtype))
        return tree.add_scaled(momentum, factor, gradient), growth

    def leap(carry: tuple[_Chain, PyTree, jax.Array], _: None) -> tuple:
        chain, momentum, growth = carry
        momentum, first = kick(momentum, chain.gradient)
        point = tree.add_scaled(tree.scale(cosine, chain.point), sine, momentum)
        momentum = tree.add_scaled(tree.scale(cosine, momentum), -sine, chain.point)
        loss, gradient = loss_and_gradient(point)
        momentum, second = kick(momentum, gradient)
        return (_Chain(point, loss, gradient, chain.log_angle), momentum, growth + first + second), None

    start = (chain, momentum, jnp.zeros_like(factor))
    (chain, _, growth), _ = jax.lax.scan(leap, start, None, length=num_leapfrog)
    return chain, growth
