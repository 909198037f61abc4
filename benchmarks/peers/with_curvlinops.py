"""curvlinops: its Lanczos never reorthogonalises; its documentation takes eigenpairs by SciPy's eigsh (ARPACK), and its
density runs eigsh for the ends first and gives the smoothed curve alone, from which no moment can be compared."""

from curvlinops import HessianLinearOperator, hutchinson_trace, lanczos_approximate_spectrum
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from scipy.sparse.linalg import eigsh

from benchmarks.peers.torch_network import Problem

PACKAGES = ("curvlinops-for-pytorch", "torch", "scipy")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    net = Problem(problem)
    operator = HessianLinearOperator(net.model, net.loss_fn, net.params, [(net.x, net.y)])
    probes, steps = sizes["density"]

    return {
        "gradient": (net.gradient, lambda result: {"vector": net.flat(result)}),
        "hvp": (lambda: operator @ net.direction, lambda result: {"vector": net.flat(result)}),
        "lanczos": (lambda: fast_lanczos(operator, sizes["lanczos"]), lambda result: {"values": result[0].numpy()}),
        "top": (
            lambda: eigsh(operator.to_scipy(), k=sizes["top"], which="LA", tol=sizes["tolerance"]),
            lambda result: {"values": result[0], "vectors": net.flat(result[1].T)},
        ),
        "density": (lambda: lanczos_approximate_spectrum(operator, steps, num_repeats=probes), lambda result: {}),
        "trace": (lambda: hutchinson_trace(operator, sizes["trace"]), lambda result: {"value": result.numpy()}),
    }
