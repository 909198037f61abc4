"""jflat by its public interface, called plainly: each call compiles itself or steps from the host."""

import jax
import jax.numpy as jnp

from benchmarks.peers.jax_network import flat, lax_conv, network, rows, unpack
from jflat.curvature import eigenpairs, hessian, lanczos, ritz, spectral_density, trace
from jflat.losses import cross_entropy, on_model
from jflat.models.layers import conv2d

PACKAGES = ("jflat", "jax", "jaxlib")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    params, batch, direction = unpack(problem)
    convolution = conv2d if conv == "slices" else lax_conv
    loss_fn = on_model(cross_entropy, lambda params, x: network(params, x, convolution))
    operator = hessian(loss_fn, params, batch)
    key = jax.random.key(0)

    gradient = jax.jit(jax.grad(loss_fn))
    product = jax.jit(lambda operator, v: operator.matvec(v))

    def tridiagonal(operator, v):
        return ritz(lanczos(operator, v, num_steps=sizes["lanczos"]))

    def top(operator, key):
        return eigenpairs(operator, key, num=sizes["top"], tolerance=sizes["tolerance"])

    def top_known(operator, v, num_steps):
        result = lanczos(operator, v, num_steps=num_steps)
        pairs = ritz(result)
        chosen = pairs.vectors[:, -sizes["top"] :].T
        return pairs.values[-sizes["top"] :], jax.tree.map(lambda rows: jnp.tensordot(chosen, rows, 1), result.basis)

    def density(operator, key):
        probes, steps = sizes["density"]
        return spectral_density(operator, key, num_steps=steps, num_probes=probes)

    def hutchinson(operator, key):
        return trace(operator, key, num_probes=sizes["trace"])

    def counts(fn, *args):
        cost = fn.lower(*args).compile().cost_analysis()
        return {"flops": cost["flops"], "bytes": cost["bytes accessed"]}

    def call(fn, *args):
        return lambda **request: jax.block_until_ready(fn(*args, **request))

    return {
        "gradient": (
            call(gradient, params, batch),
            lambda result: {"vector": flat(result)} | counts(gradient, params, batch),
        ),
        "hvp": (
            call(product, operator, direction),
            lambda result: {"vector": flat(result)} | counts(product, operator, direction),
        ),
        "lanczos": (call(tridiagonal, operator, direction), lambda result: {"values": result.values}),
        "top": (
            call(top, operator, key),
            lambda result: {
                "values": result.values,
                "vectors": rows(result.vectors),
                "products": result.num_matvecs,
                "status": result.status,
            },
        ),
        "top_known": (
            call(top_known, operator, direction),
            lambda result: {"values": result[0], "vectors": rows(result[1])},
        ),
        "density": (call(density, operator, key), lambda result: {"nodes": result.nodes, "weights": result.weights}),
        "trace": (call(hutchinson, operator, key), lambda result: {"value": result.value, "stderr": result.stderr}),
    }
