"""Every configuration of small devices at once: how many solutions lie near each solution, and how errors grow there.

N weights +-1 in three blocks of n = N / 3 inputs: the sums of a block take 2^n configurations, and a device's answer is
a function of the three sums,

    perceptron  sign(s_1 + s_2 + s_3),     committee  majority of the signs,     parity machine  product of the signs

(the last two are trees of three units). With S(w) = 1 for solutions and E(w) the number of errors, what is found at
Hamming distance r is a convolution on the hypercube, (S * 1_r)(w) = sum_u S(w + u) [|u| = r], which the Walsh-Hadamard
transform makes a product: 1_r has the Krawtchouk polynomial K_r(|v|; N) as its transform. N must be odd and n too, so
that no sum is zero.
"""

import functools
import math
from typing import Any

import numpy as np

from jflat.core import check

__all__ = ["DEVICES", "errors_of_all", "krawtchouk", "landscape", "spheres"]

DEVICES = ("perceptron", "committee", "parity")


def _configurations(size: int) -> np.ndarray:
    """(2^n, n) all +-1, the last weight changing fastest."""
    bits = np.arange(2**size)[:, None] >> np.arange(size)[::-1] & 1
    return (1 - 2 * bits).astype(np.float32)


def errors_of_all(device: str, patterns: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """E(w) of every configuration, (2^n, 2^n, 2^n) uint8.

    Args:
      device: of `DEVICES`.
      patterns: (M, N) +-1, N = 3 n with n odd, M at most 255.
      labels: (M,) +-1.
    """
    check.require_choice("errors_of_all", "device", device, DEVICES)
    number, size = patterns.shape
    n = size // 3
    rule = "must be (M, 3 n), n odd, M at most 255"
    check.require(size == 3 * n and n % 2 == 1 and number < 256, "errors_of_all", "patterns", rule, patterns.shape)
    every = _configurations(n)
    blocks = np.asarray(patterns, np.float32).reshape(number, 3, n)
    sums = np.einsum("cn,mkn->mkc", every, blocks).astype(np.int8)
    signs = np.sign(sums)
    errors = np.zeros((2**n,) * 3, np.uint8)
    for mu in range(number):
        a, b, c = sums[mu] if device == "perceptron" else signs[mu]
        a, b, c = a[:, None, None], b[None, :, None], c[None, None, :]
        answer = a * b * c if device == "parity" else a + b + c
        errors += answer * np.int8(labels[mu]) < 0
    return errors


@functools.cache
def krawtchouk(size: int, degree: int) -> tuple[int, ...]:
    """K_r(v; N) = sum_j (-1)^j C(v, j) C(N - v, r - j) for v = 0 ... N: the transform of a sphere.

    >>> krawtchouk(3, 1)
    (3, 1, -1, -3)
    """
    terms = lambda v: ((-1) ** j * math.comb(v, j) * math.comb(size - v, degree - j) for j in range(degree + 1))  # noqa: E731
    return tuple(sum(terms(v)) for v in range(size + 1))


def _transform(values: np.ndarray) -> np.ndarray:
    """Walsh and Hadamard's transform along each axis, which is its own inverse up to the number of entries."""
    n = round(math.log2(values.shape[0]))
    hadamard = functools.reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]])] * n).astype(values.dtype)
    for axis in range(3):
        values = np.moveaxis(np.tensordot(hadamard, values, axes=(1, axis)), 0, axis)
    return values


def spheres(values: np.ndarray, radii: Any) -> list[np.ndarray]:
    """(f * 1_r)(w) = sum over configurations at distance r of f, for each radius."""
    n = round(math.log2(values.shape[0]))
    ones = np.bitwise_count(np.arange(2**n)).astype(int)
    weight = ones[:, None, None] + ones[None, :, None] + ones[None, None, :]
    transformed = _transform(values.astype(np.float64))
    kernel = [np.asarray(krawtchouk(3 * n, int(r)), np.float64)[weight] for r in radii]
    return [_transform(transformed * k) / values.size for k in kernel]


def landscape(device: str, patterns: np.ndarray, labels: np.ndarray, radii: Any) -> dict[str, np.ndarray]:
    """What surrounds the solutions of one instance.

    Returns:
      num_solutions (); `densest` and `mean_near` (R,): the number of solutions at distance at most r (itself included)
      from the solution that has most of them, and from a solution on average; `flattest` and `mean_error` (R,): the
      mean fraction of errors at distance r from the solution with the smallest one, and from a solution on average. NaN
      where there is no solution.
    """
    errors = errors_of_all(device, patterns, labels)
    solved = errors == 0
    number = int(solved.sum())
    radii = np.asarray(radii)
    blank = np.full(len(radii), np.nan)
    names = ("densest", "mean_near", "flattest", "mean_error")
    found = {"num_solutions": np.asarray(number)} | {name: blank.copy() for name in names}
    if number == 0:
        return found
    shells = spheres(solved, range(1, int(radii.max()) + 1))
    inside = np.cumsum([np.ones(number), *(np.round(shell[solved]) for shell in shells)], axis=0)
    size = patterns.shape[1]
    for place, (r, wrong) in enumerate(zip(radii, spheres(errors, radii), strict=True)):
        near = inside[int(r)]
        found["densest"][place], found["mean_near"][place] = near.max(), near.mean()
        rate = wrong[solved] / (math.comb(size, int(r)) * len(labels))
        found["flattest"][place], found["mean_error"][place] = rate.min(), rate.mean()
    return found
