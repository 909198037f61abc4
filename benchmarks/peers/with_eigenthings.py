"""pytorch-hessian-eigenthings. Above 50 steps it stops reorthogonalising by itself; here it is told to go on, since
ghosts would spoil the ten eigenvalues. Its eigenpairs take a number of steps and say whether they converged: without
knowledge of the number, the steps are doubled from its default, twice the pairs, until they have."""

import torch
from hessian_eigenthings import HessianOperator
from hessian_eigenthings.algorithms import lanczos, lanczos_tridiagonal, spectral_density, trace
from hessian_eigenthings.loss_fns import supervised_loss

from benchmarks.peers.torch_network import Problem

PACKAGES = ("hessian-eigenthings", "torch")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    net = Problem(problem)
    operator = HessianOperator(net.model, [(net.x, net.y)], supervised_loss(net.loss_fn))
    probes, steps = sizes["density"]

    def tridiagonal():
        result = lanczos_tridiagonal(operator, net.direction, sizes["lanczos"], reorthogonalize=True)
        off_diagonal = torch.diag(result.betas[: len(result.alphas) - 1], 1)
        return torch.linalg.eigh(torch.diag(result.alphas) + off_diagonal + off_diagonal.T)[0]

    def top_known(num_steps):
        keywords = {"tol": sizes["tolerance"], "reorthogonalize": True, "which": "LA", "seed": 0}
        return lanczos(operator, k=sizes["top"], max_iter=num_steps, **keywords)

    def top():
        num_steps = 2 * sizes["top"]
        while not (result := top_known(num_steps)).converged.all():
            num_steps *= 2
        return result

    def eigenvectors(result):
        return {"values": result.eigenvalues.numpy(), "vectors": net.flat(result.eigenvectors)}

    return {
        "gradient": (net.gradient, lambda result: {"vector": net.flat(result)}),
        "hvp": (lambda: operator.matvec(net.direction), lambda result: {"vector": net.flat(result)}),
        "lanczos": (tridiagonal, lambda result: {"values": result.numpy()}),
        "top": (top, lambda result: eigenvectors(result) | {"last_steps": result.iterations}),
        "top_known": (top_known, eigenvectors),
        "density": (
            lambda: spectral_density(operator, num_runs=probes, lanczos_steps=steps, seed=0),
            lambda result: {"nodes": result.raw_eigenvalues.numpy(), "weights": result.raw_weights.numpy()},
        ),
        "trace": (
            lambda: trace(operator, num_matvecs=sizes["trace"], method="hutchinson", seed=0),
            lambda result: {"value": result.estimate},
        ),
    }
