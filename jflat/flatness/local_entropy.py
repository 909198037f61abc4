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

The chains are compiled whole, or (`loop`) stepped from the host, with the same numbers to rounding as long as no
acceptance lies on the edge: for convolutions on CPU that is ten times faster, see `jflat.flatness.objective`.

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
from jflat.core.loop import map_rows, scan
from jflat.curvature.probes import mean_and_stderr
from jflat.data import Batches
from jflat.flatness.objective import objective

__all__ = ["LocalEntropyResult", "local_entropy"]

PyTree = Any

_part = functools.partial(jax.jit, inline=True)  # compiled for the host's loop; in the device's, written in place

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
    """grad F = gamma (w - <w'>), like the parameters; zero where the mask is False."""
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


class _Window(NamedTuple):
    center: PyTree  # w, the leaves that move
    wide: PyTree  # w in at least float32, in which the chains move
    gamma: jax.Array
    beta: jax.Array
    width: jax.Array
    largest: jax.Array  # log of the largest angle
    burn_in: int
    num_steps: int


class _Chain(NamedTuple):
    point: PyTree  # x = w' - w
    loss: jax.Array  # L(w + x)
    gradient: PyTree
    log_angle: jax.Array  # log a, before the jitter


class _Leap(NamedTuple):
    chain: _Chain
    momentum: PyTree
    growth: jax.Array  # of |x|^2 + |p|^2


class _Draw(NamedTuple):
    """The random numbers of a trajectory."""

    cosine: jax.Array
    sine: jax.Array
    factor: jax.Array  # of a kick
    threshold: jax.Array


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
    mask: tree.Mask | None = None,
    loop: str = "auto",
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
      chunk_size: chains run at once on the device (`jax.lax.map(..., batch_size)`); None is one after the other, as
        always from the host.
      mask: leaves that move: a tree of Python booleans, a prefix of one, or a function of the params that gives one
        (`jflat.core.tree.mask_by_path`); the others stay at w, and F is a function of the chosen ones. None is all.
      loop: "device" (compiled whole), "host" (compiled steps called from Python; not under `jit` or `vmap`) or "auto":
        the host for convolutions on CPU where nothing is traced, else the device.

    Returns:
      A `LocalEntropyResult`.

    Raises:
      ValueError: if an argument is out of range, the loss is not one real scalar, the mask does not fit or chooses
        nothing, or a traced call asks for the host.

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
    check.require_number(where, "gamma", gamma, 0.0, exclusive=True)
    check.require_number(where, "beta", beta, 0.0, exclusive=True)
    for name, count in {"num_steps": num_steps, "num_chains": num_chains}.items():
        check.require_integer(where, name, count, 2)
    for name, count in {"burn_in": burn_in, "num_leapfrog": num_leapfrog, "num_nodes": num_nodes}.items():
        check.require_integer(where, name, count, 1)
    if chunk_size is not None:
        check.require_integer(where, "chunk_size", chunk_size, 1)
    goal, center = objective(where, loss_fn, params, batches, mask)
    loop = goal.choose_loop(loop, center, key, gamma, beta)

    dtypes = [goal.loss_dtype(center), *(leaf.dtype for leaf in jax.tree.leaves(center))]
    dtype = functools.reduce(np.promote_types, dtypes, np.dtype(np.float32))
    gamma, beta = jnp.asarray(gamma, dtype), jnp.asarray(beta, dtype)
    largest = jnp.log(jnp.asarray(np.pi / 2 / num_leapfrog, dtype))
    wide = jax.tree.map(lambda w: w.astype(dtype), center)
    window = _Window(center, wide, gamma, beta, 1 / jnp.sqrt(beta * gamma), largest, burn_in, num_steps)
    abscissae, legendre_weights = np.polynomial.legendre.leggauss(num_nodes)
    nodes = (abscissae + 1) / 2
    couplings = jnp.asarray(np.append(nodes**3, 1.0), dtype)
    weights = jnp.asarray(3 * nodes**2 * legendre_weights / 2, dtype)

    def trajectory(s: jax.Array, carry: tuple[_Chain, _Sums], row: tuple[jax.Array, jax.Array]) -> tuple:
        def leap(carry: _Leap, _: None) -> tuple[_Leap, None]:
            moved, at = _drift(window, draw, carry)
            return _arrive(window, draw, moved, *goal.value_and_gradient(at, loop=loop)), None

        (chain, sums), (index, key) = carry, row
        draw, start = _throw(window, s, chain, key)
        end, _ = scan(leap, start, None, length=num_leapfrog, loop=loop)
        return _decide(window, s, draw, chain, end, sums, index), None

    def stage(carry: tuple[_Chain, PyTree], row: tuple[jax.Array, jax.Array]) -> tuple:
        (chain, _), (s, key) = carry, row
        indices = jnp.arange(burn_in + num_steps, dtype=jnp.int32)
        rows = (indices, jax.random.split(key, indices.size))
        (chain, sums), _ = scan(functools.partial(trajectory, s), (chain, _no_sums(window)), rows, loop=loop)
        forces, numbers = _averages(window, chain, sums)
        return (chain, forces), numbers

    def run_chain(key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        start_key, key = jax.random.split(key)
        point, at = _enter(window, start_key)
        loss, gradient = _widened(window, *goal.value_and_gradient(at, loop=loop))
        chain = _Chain(point, loss, gradient, largest)
        rows = (couplings, jax.random.split(key, couplings.size))
        (_, forces), numbers = scan(stage, (chain, (point, point)), rows, loop=loop)
        return forces, numbers

    keys = jax.random.split(key, num_chains)
    if loop == "host":
        forces, chains = map_rows(run_chain, keys, loop=loop)
    else:
        forces, chains = jax.lax.map(run_chain, keys, batch_size=chunk_size)
    energies, energies_stderr = mean_and_stderr(chains["energy"])
    value, stderr = mean_and_stderr(jnp.sum(chains["energy"][:, :-1] * weights, axis=1))
    by_halves = jnp.sum(jnp.mean(chains["halves"], axis=0)[:-1] * weights[:, None], axis=0)
    gradient, gradient_stderr = _combine(*forces)
    acceptance = jnp.mean(chains["acceptance"], axis=0)

    finite = tree.all_finite((center, forces)) & jnp.isfinite(value) & jnp.isfinite(energies[-1])
    moves = jnp.min(acceptance) >= _LEAST_ACCEPTANCE
    status = jnp.where(finite, jnp.where(moves, Status.COMPLETED, Status.STAGNATION), Status.NON_FINITE)

    def known(x: jax.Array) -> jax.Array:
        return jnp.where(finite, x, jnp.nan)

    return LocalEntropyResult(
        value=known(value),
        stderr=known(stderr),
        gradient=goal.whole(jax.tree.map(lambda g, w: known(g).astype(w.dtype), gradient, center)),
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


def _moved(window: _Window, point: PyTree) -> PyTree:
    """w + x in the dtype of w."""
    return jax.tree.map(lambda w, origin, x: (origin + x).astype(w.dtype), window.center, window.wide, point)


@_part
def _enter(window: _Window, key: jax.Array) -> tuple[PyTree, PyTree]:
    """Where a chain starts: x from the prior, and the parameters there."""
    point = tree.scale(window.width, tree.random_normal(key, window.wide))
    return point, _moved(window, point)


@_part
def _widened(window: _Window, loss: jax.Array, gradient: PyTree) -> tuple[jax.Array, PyTree]:
    return loss.astype(window.gamma.dtype), jax.tree.map(lambda g: g.astype(window.gamma.dtype), gradient)


@_part
def _throw(window: _Window, s: jax.Array, chain: _Chain, key: jax.Array) -> tuple[_Draw, _Leap]:
    """The random numbers of a trajectory and its start."""
    momentum_key, jitter_key, test_key = jax.random.split(key, 3)
    dtype = s.dtype
    momentum = tree.scale(window.width, tree.random_normal(momentum_key, window.wide))
    angle = jnp.exp(chain.log_angle) * jax.random.uniform(jitter_key, (), dtype, 1 - _JITTER, 1 + _JITTER)
    threshold = jax.random.uniform(test_key, dtype=dtype)
    factor = -jnp.tan(angle / 2) * (s / window.gamma)
    return _Draw(jnp.cos(angle), jnp.sin(angle), factor, threshold), _Leap(chain, momentum, jnp.zeros_like(factor))


def _kick(draw: _Draw, momentum: PyTree, gradient: PyTree) -> tuple[PyTree, jax.Array]:
    """The momentum after half a step's force, and by how much |x|^2 + |p|^2 grows.

    The growth is summed over the kicks, since rotations have none: a difference of two sums of P terms would lose it to
    rounding.
    """
    factor = draw.factor
    along, square = tree.inner(momentum, gradient), tree.squared_norm(gradient)
    growth = factor * (2 * along.astype(factor.dtype) + factor * square.astype(factor.dtype))
    return tree.add_scaled(momentum, factor, gradient), growth


@_part
def _drift(window: _Window, draw: _Draw, leap: _Leap) -> tuple[_Leap, PyTree]:
    """The first kick and the rotation; and the parameters reached, where the gradient is to be taken."""
    momentum, growth = _kick(draw, leap.momentum, leap.chain.gradient)
    point = tree.add_scaled(tree.scale(draw.cosine, leap.chain.point), draw.sine, momentum)
    momentum = tree.add_scaled(tree.scale(draw.cosine, momentum), -draw.sine, leap.chain.point)
    return _Leap(leap.chain._replace(point=point), momentum, leap.growth + growth), _moved(window, point)


@_part
def _arrive(window: _Window, draw: _Draw, leap: _Leap, loss: jax.Array, gradient: PyTree) -> _Leap:
    """The second kick, by the gradient at the new point."""
    loss, gradient = _widened(window, loss, gradient)
    momentum, growth = _kick(draw, leap.momentum, gradient)
    return _Leap(leap.chain._replace(loss=loss, gradient=gradient), momentum, leap.growth + growth)


@_part
def _decide(
    window: _Window, s: jax.Array, draw: _Draw, chain: _Chain, end: _Leap, sums: _Sums, index: jax.Array
) -> tuple[_Chain, _Sums]:
    """The Metropolis test; then the angle adapts, or after burn-in the sums grow."""
    burn_in, num_steps, dtype = window.burn_in, window.num_steps, s.dtype
    proposal = end.chain
    log_ratio = window.beta * (s * (chain.loss - proposal.loss) - window.gamma / 2 * end.growth)
    log_ratio = jnp.where(jnp.isfinite(proposal.loss) & ~jnp.isnan(log_ratio), log_ratio, -jnp.inf)
    probability = jnp.exp(jnp.minimum(log_ratio, 0))
    chain = tree.where(draw.threshold < probability, proposal, chain)

    adapts = index < burn_in
    rate = (index + 1).astype(dtype) ** -0.6
    log_angle = jnp.minimum(chain.log_angle + rate * (probability - _TARGET_ACCEPTANCE), window.largest)
    chain = chain._replace(log_angle=jnp.where(adapts, log_angle, chain.log_angle))
    half = jnp.where(index < burn_in + num_steps // 2, 0, 1)
    following = _Sums(
        losses=sums.losses.at[half].add(chain.loss),
        acceptance=sums.acceptance + probability,
        point=tree.add(sums.point, chain.point),
        gradient=tree.add(sums.gradient, chain.gradient),
        squared_distance=sums.squared_distance + tree.squared_norm(chain.point).astype(dtype),
    )
    return chain, tree.where(adapts, sums, following)


@_part
def _no_sums(window: _Window) -> _Sums:
    zero = jnp.zeros((), window.gamma.dtype)
    zeros = tree.zeros_like(window.wide)
    return _Sums(jnp.zeros(2, zero.dtype), zero, zeros, zeros, zero)


@_part
def _averages(window: _Window, chain: _Chain, sums: _Sums) -> tuple[PyTree, dict[str, jax.Array]]:
    """Of one chain in one stage: (gamma (w - w'), grad L), and the numbers."""
    number, dtype = jnp.asarray(window.num_steps), window.gamma.dtype
    halves = jnp.stack([number // 2, number - number // 2]).astype(dtype)
    number = number.astype(dtype)
    numbers = {
        "energy": jnp.sum(sums.losses) / number,
        "halves": sums.losses / halves,
        "acceptance": sums.acceptance / number,
        "step_size": (1 - jnp.cos(jnp.exp(chain.log_angle))) / window.gamma,
        "squared_distance": sums.squared_distance / number,
    }
    return (tree.scale(-window.gamma / number, sums.point), tree.scale(1 / number, sums.gradient)), numbers
