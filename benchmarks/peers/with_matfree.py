"""matfree: the user brings the product (jvp of grad, from which XLA hoists the primal out of the loops).

It has no density and no error estimate of eigenpairs: quadratures are made of its tridiagonalisation, and eigenpairs
take a known number of steps. Probes run in turn, which is the fastest here.
"""

import jax
import jax.numpy as jnp
from matfree import decomp, eig, stochtrace

from benchmarks.peers.jax_network import loss, rows, unpack

PACKAGES = ("matfree", "jax", "jaxlib")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    params, batch, direction = unpack(problem)

    def matvec(v, params, batch):
        return jax.jvp(lambda p: jax.grad(loss)(p, batch, conv), (params,), (v,))[1]

    @jax.jit
    def tridiagonal(v, params, batch):
        return jnp.linalg.eigh(decomp.tridiag_sym(sizes["lanczos"])(matvec, v, params, batch).J_small)[0]

    def top(v, params, batch, num_steps):
        values, vectors = eig.eigh_partial(decomp.tridiag_sym(num_steps))(matvec, v, params, batch)
        return values[-sizes["top"] :], jax.tree.map(lambda x: x[-sizes["top"] :], vectors)

    top = jax.jit(top, static_argnames="num_steps")
    probes, steps = sizes["density"]

    @jax.jit
    def density(key, params, batch):
        def probe(key):
            v = jax.tree.map(lambda x: x[0], stochtrace.sampler_signs(params, num=1)(key))
            nodes, vectors = jnp.linalg.eigh(decomp.tridiag_sym(steps)(matvec, v, params, batch).J_small)
            return nodes, vectors[0] ** 2

        return jax.lax.map(probe, jax.random.split(key, probes))

    @jax.jit
    def trace(key, params, batch):
        sampler = stochtrace.sampler_signs(params, num=1)
        estimate = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), sampler)
        keys = jax.random.split(key, sizes["trace"])
        return jnp.mean(jax.lax.map(lambda key: estimate(matvec, key, params, batch), keys))

    key = jax.random.key(0)

    def call(fn, first):
        return lambda **request: jax.block_until_ready(fn(first, params, batch, **request))

    return {
        "lanczos": (call(tridiagonal, direction), lambda result: {"values": result}),
        "top_known": (call(top, direction), lambda result: {"values": result[0], "vectors": rows(result[1])}),
        "density": (call(density, key), lambda result: {"nodes": result[0], "weights": result[1]}),
        "trace": (call(trace, key), lambda result: {"value": result}),
    }
