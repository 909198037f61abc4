"""traceax: Hutchinson with all probes at once, as it does by itself. Its default sampler draws integers, which a
lineax operator refuses, so the sampler of floats is given."""

import jax
import lineax
import traceax
from jax.flatten_util import ravel_pytree

from benchmarks.peers.jax_network import loss, unpack

PACKAGES = ("traceax", "lineax", "jax", "jaxlib")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    params, batch, _ = unpack(problem)
    estimator = traceax.HutchinsonEstimator(traceax.RademacherSampler(float))

    @jax.jit
    def trace(key, params, batch):
        vector, unravel = ravel_pytree(params)

        def matvec(v):
            return ravel_pytree(jax.jvp(lambda p: jax.grad(loss)(p, batch, conv), (params,), (unravel(v),))[1])[0]

        structure = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
        operator = lineax.FunctionLinearOperator(matvec, structure, lineax.symmetric_tag)
        return estimator.estimate(key, operator, sizes["trace"])[0]

    key = jax.random.key(0)
    return {"trace": (lambda: jax.block_until_ready(trace(key, params, batch)), lambda result: {"value": result})}
