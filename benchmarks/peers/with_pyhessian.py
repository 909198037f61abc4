"""PyHessian 0.1, as on PyPI. Its `density` calls `torch.eig`, which torch no longer has: a stand-in is put there, in
this process only. `tol=0` makes its trace use every probe instead of stopping at the first small change."""

import numpy as np
import torch
from pyhessian import hessian
from pyhessian.utils import hessian_vector_product

from benchmarks.peers.torch_network import Problem

PACKAGES = ("pyhessian", "torch")


def _eig(matrix, eigenvectors):
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


torch.eig = _eig


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    net = Problem(problem)
    module = hessian(net.model, net.loss_fn, data=(net.x, net.y), cuda=False)
    parts = net.direction.split([p.numel() for p in net.params])
    direction = [part.reshape(p.shape) for part, p in zip(parts, net.params, strict=True)]
    probes, steps = sizes["density"]

    def eigenvectors(result):
        values, vectors = result
        order = np.argsort(values)[::-1]
        return {"values": np.array(values)[order], "vectors": np.stack([net.flat(vectors[i]) for i in order])}

    return {
        "gradient": (net.gradient, lambda result: {"vector": net.flat(result)}),
        "hvp": (
            lambda: hessian_vector_product(module.gradsH, module.params, direction),
            lambda result: {"vector": net.flat(result)},
        ),
        "lanczos": (
            lambda: module.density(iter=sizes["lanczos"], n_v=1),
            lambda result: {"values": np.array(result[0][0])},
        ),
        "top": (lambda: module.eigenvalues(top_n=sizes["top"], tol=sizes["tolerance"]), eigenvectors),
        "density": (
            lambda: module.density(iter=steps, n_v=probes),
            lambda result: {"nodes": np.array(result[0]), "weights": np.array(result[1])},
        ),
        "trace": (
            lambda: module.trace(maxIter=sizes["trace"], tol=0),
            lambda result: {"value": np.mean(result), "products": len(result)},
        ),
    }
