"""Nonlinear networks: are the points where finders stop critical, gradient-flat, or neither?

Claims (Frye et al. 2003.10397; networks with the activation x sigmoid(x), rtol 5e-4):

1. An autoencoder 16-8-16-16 on images of 4 x 4 pixels: 14 % of runs end critical, 28 % with r > 0.9, 89 % pass one.
2. A network 32-32-4-2 that memorises permuted labels of 50 zeros and ones: 17 of 50 runs reach |g|^2 < 1e-8, 6 % end
   with r > 0.9, 62 % pass such a point; and there is a "bad local minimum" of loss ln 2.

r counts where the solver stopped for least squares (flag 2).

Here F(tau) stands beside r, the runs are done with a tight inner solver as well, and the bad local minimum is resolved:
its Hessian has the spectrum -r .. 2 r with r = 2 lambda / P, one negative eigenvalue below the published cutoff of
1e-3. It is the saddle that guards the origin.

    python -m experiments run critical-nonlinear                        digits: minutes on two cores
    python -m experiments run critical-nonlinear --data mnist           from $JFLAT_DATA/mnist
    python -m experiments run critical-nonlinear --preset smoke         seconds; the tests run it
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.claims import Claim, agrees, failures
from experiments.critical_points import measuring, nonlinear_page
from experiments.critical_points.problems import (
    image_codes,
    init_layers,
    memorisation_task,
    reconstruction_loss,
    starts_of,
    with_decay,
)
from experiments.parts import run_parts
from experiments.registry import Progress, Summary
from jflat.core import check, dense
from jflat.critical import find_critical_points, newton_mr
from jflat.curvature import hessian
from jflat.report import Measured, format_measured

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run", "summarise"]

CLAIM = "Finders on nonlinear networks mostly end at gradient-flat regions, seldom at critical points (2003.10397)."


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "mnist"] = "digits"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`. Digits need none."""
    num_images: int = 200
    """Of the autoencoder; publication: 10,000."""
    autoencoder: tuple[int, ...] = (16, 8, 16, 16)
    autoencoder_starts: tuple[int, ...] = (12, 4)
    """At the loose and at the tight tolerance."""
    autoencoder_steps: tuple[int, ...] = (100, 25)
    memorisation: tuple[int, ...] = (32, 32, 4, 2)
    memorisation_samples: int = 50
    memorisation_starts: tuple[int, ...] = (12, 4)
    memorisation_steps: tuple[int, ...] = (100, 25)
    decay: float = 0.1
    """lambda of the mean square of the weights."""
    rtols: tuple[float, ...] = (5e-4, 1e-8)
    """Of MINRES-QLP: loose, as published, and tight."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        num_images=30,
        autoencoder=(16, 2, 16),
        autoencoder_starts=(3, 2),
        autoencoder_steps=(8, 4),
        memorisation=(4, 3, 3, 2),
        memorisation_samples=20,
        memorisation_starts=(3, 2),
        memorisation_steps=(8, 4),
        decay=0.0023,
    ),
    "default": Config(),
    # As published, on a machine with more cores; nobody has run it here.
    "paper": Config(
        data="mnist",
        num_images=10_000,
        autoencoder_starts=(100, 20),
        autoencoder_steps=(500, 500),
        memorisation_starts=(50, 20),
        memorisation_steps=(500, 500),
    ),
}


def _problem(config: Config, net: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(loss, parameters, batch, settings of the training run that gives the starts)."""
    key = jax.random.key(config.seed)
    if net == "autoencoder":
        params = init_layers(key, config.autoencoder, bias=True)
        batch: Any = image_codes(config.data, config.data_directory, config.num_images)
        return reconstruction_loss, params, batch, {"rate": 0.1, "num_steps": 1000}
    params = init_layers(key, config.memorisation, bias=False)
    size = config.memorisation[0]
    batch = memorisation_task(config.data, config.data_directory, config.memorisation_samples, size, config.seed)
    return with_decay(config.decay), params, batch, {"rate": 0.1, "num_steps": 1000}


def _find(config: Config, net: str, number: int, tell: Any) -> dict[str, Any]:
    rtol = config.rtols[number]
    tell(0.0, f"{net}, rtol {rtol:g}")
    with jax.enable_x64(True):
        loss_fn, params, batch, training = _problem(config, net)
        starts = starts_of(
            jax.random.key(config.seed + 1),
            loss_fn,
            params,
            batch,
            num_starts=getattr(config, f"{net}_starts")[number],
            **training,
        )
        method = newton_mr(rtol=rtol, max_norm=1e4, max_condition=1e7)
        points = ("best", "flattest", "last")
        steps = getattr(config, f"{net}_steps")[number]
        return measuring.find(loss_fn, starts, batch, method, num_steps=steps, points=points)


def _guard(config: Config, tell: Any) -> dict[str, Any]:
    """The saddle by the origin: ln 2 + r |w|^2 / 2 - T(w), T cubic, on the ray where T grows most; then Newton-MR."""
    tell(0.0, "the saddle that guards the origin")
    with jax.enable_x64(True):
        loss_fn, params, batch, _ = _problem(config, "memorisation")
        flat, unravel = ravel_pytree(params)
        r, small = 2 * config.decay / flat.size, 1e-5
        pull_of = jax.jit(lambda u: r * u - jax.grad(lambda w: loss_fn(unravel(w), batch))(small * u) / small)
        u = np.random.default_rng(config.seed).normal(size=flat.size)
        for _ in range(400):
            u /= np.linalg.norm(u)
            pull = np.asarray(pull_of(u))
            u = u + pull / np.linalg.norm(pull)
        u /= np.linalg.norm(u)
        start = unravel(jnp.asarray(r / (np.asarray(pull_of(u)) @ u / small) * u))
        run = lambda w: find_critical_points(loss_fn, w, batch, newton_mr(rtol=1e-12), num_steps=30)  # noqa: E731
        result = jax.jit(run)(start)
        spectrum = jax.jit(lambda w: jnp.linalg.eigvalsh(dense(hessian(loss_fn, w, batch))))
        origin = jax.tree.map(jnp.zeros_like, params)
        return {
            "values": np.asarray(spectrum(result.best.params)),
            "origin": np.asarray(spectrum(origin)),
            "loss": np.asarray(result.best.loss),
            "squared_gradient_norm": np.asarray(result.best.squared_gradient_norm),
            "length": np.asarray(jnp.linalg.norm(ravel_pytree(result.best.params)[0])),
            "r": np.asarray(r),
        }


PUBLISHED = {
    "autoencoder": {"critical": Measured(0.14, 0.035), "final": Measured(0.28, 0.045), "passed": Measured(0.89, 0.031)},
    "memorisation": {
        "critical": Measured(0.34, 0.067),
        "final": Measured(0.06, 0.034),
        "passed": Measured(0.62, 0.069),
    },
}
PUBLISHED_STEPS = 500
LABELS = {"critical": "critical", "final": "end with r > 0.9", "passed": "pass r > 0.9"}
LEVELS = {"autoencoder": 1e-10, "memorisation": 1e-8}
"""|g|^2 of what was published as critical."""


def _shares(get: dict[str, np.ndarray], level: float) -> dict[str, Measured]:
    return {
        "critical": measuring.share(get["squared_gradient_norm"] < level),
        "final": measuring.share(measuring.ends_flat(get)),
        "passed": measuring.share(measuring.passes_flat(get)),
    }


def summarise(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Shares of runs by network and tolerance, flatness of where they end, and claims."""
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    for net in ("autoencoder", "memorisation"):
        for rtol in config["rtols"]:
            where = f"{net}/{rtol:g}/"
            get = {name.removeprefix(where): value for name, value in arrays.items() if name.startswith(where)}
            shares = _shares(get, LEVELS[net])
            indices = get["best/index"]
            row = {
                "net": net,
                "rtol": rtol,
                "runs": len(get["loss"]),
                **{name: list(value) for name, value in shares.items()},
                "both_tests": int(np.sum(get["best/kind"] == 1)),
                "square": float(np.median(get["squared_gradient_norm"])),
                "fractions": np.median(get["last/flatness"], axis=0).tolist(),
                "sensitive": float(np.mean(np.any(indices != indices[:, :1], axis=1))),
                "index_ratio": float(np.median(indices[:, 2] / np.maximum(indices[:, 0], 1))),
            }
            rows.append(row)
            if rtol == config["rtols"][0]:
                for name, label in LABELS.items():
                    theirs = PUBLISHED[net][name]
                    # The longer a run, the more points it passes, so a shorter one says nothing of their shares.
                    is_theirs = config["data"] == "mnist" and config[f"{net}_steps"][0] >= PUBLISHED_STEPS
                    status = agrees(shares[name], theirs) if is_theirs else "undecided"
                    note = "" if is_theirs else f" [MNIST, {PUBLISHED_STEPS} steps]"
                    claims.append(
                        Claim(
                            f"{net}: {label}", format_measured(*shares[name]), format_measured(*theirs) + note, status
                        )
                    )
            else:
                claims.append(
                    Claim.bounded(
                        f"{net}, rtol {rtol:g}: {LABELS['passed']}", shares["passed"], "[0; < 0.1]", -np.inf, 0.1
                    )
                )
            claims.append(
                Claim.bounded(
                    f"{net}, rtol {rtol:g}: median F(1e-6) at the end",
                    Measured(row["fractions"][1], 0.0),
                    "[< 0.9: not flat]",
                    0.0,
                    0.9,
                )
            )
    r, values = float(arrays["guard/r"]), arrays["guard/values"]
    for label, number, wanted, low, high in (
        ("saddle by the origin: λ_min / r", values[0] / r, "−1.000 ± 1 %", -1.01, -0.99),
        ("saddle by the origin: λ_max / r", values[-1] / r, "2.000 ± 1 %", 1.98, 2.02),
        ("its index at the absolute cutoff 1e-3", np.sum(values < -1e-3), "0", 0, 0),
        ("its index at 0.1 |H|", np.sum(values < -0.1 * np.abs(values).max()), "1", 1, 1),
        ("the origin: largest |λ − r| / r", np.abs(arrays["guard/origin"] - r).max() / r, "0 [< 1e-9]", 0, 1e-9),
    ):
        claims.append(Claim.bounded(label, Measured(float(number), 0.0), wanted, low, high))
    guard = {
        "length": float(arrays["guard/length"]),
        "excess": float(arrays["guard/loss"] - np.log(2)),
        "square": float(arrays["guard/squared_gradient_norm"]),
        "r": r,
    }
    return {
        "experiment": "critical-nonlinear",
        "claims": [dataclasses.asdict(c) for c in claims],
        "failures": failures(arrays),
        "runs": rows,
        "guard": guard,
    }


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Network by network and tolerance by tolerance; what is finished on disk is not done again."""
    for name in ("autoencoder_starts", "autoencoder_steps", "memorisation_starts", "memorisation_steps"):
        given = getattr(config, name)
        rule = f"must have as many entries as rtols, {len(config.rtols)}"
        check.require(len(given) == len(config.rtols), "critical-nonlinear", name, rule, given)
    rtols = config.rtols
    parts: dict[str, Any] = {"guard": functools.partial(_guard, config)}
    for net in ("autoencoder", "memorisation"):
        for number, rtol in enumerate(rtols):
            parts[f"{net}/{rtol:g}"] = functools.partial(_find, config, net, number)
    run_parts(
        config, directory, progress, parts, functools.partial(summarise, dataclasses.asdict(config)), {"guard": 0.2}
    )


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return nonlinear_page.draw(directory, CLAIM)
