"""What a parametrisation does as the width grows: stable or not, and why; kernels or features; the slope of each layer.

With L hidden layers, write q = 2 a_{L+1} + c_{L+1} for SGD and q = a_{L+1} + c_{L+1} for Adam, and k = a_{L+1} +
b_{L+1}. The update of layer l changes its preactivations by Delta W^l x^{l-1} = Theta(n^{-r_l}),

    SGD:   r_l = min(k, q) + 2 a_l + c_l - [l > 1]        (one step: k in place of min(k, q))
    Adam:  r_l = a_l + c_l - [l > 1]

The gradient reaches layer l with the size n^{-min(k, q)} of the readout's entries, and a sum over the n inputs of the
layer (none in the first one) adds up coherently. With r = min_l r_l,

    Delta h^l = Theta(n^{-min_{m <= l} r_m}),   Delta W^{L+1} x^L = Theta(n^{1 - q}),
    W_0^{L+1} Delta x^L = O(n^{1 - (k + r)})

**Stable** (theorem 3.3): a_1 + b_1 = 0, a_l + b_l = 1/2, k >= 1/2; r >= 0; q >= 1 and k + r >= 1. **Nontrivial**
(3.4): q = 1 or k + r = 1. A nontrivial stable parametrisation learns features if r = 0 and is in the kernel regime if
r > 0 (3.6, 3.8, corollary 3.9). Layer l <= L is **updated maximally** if r_l = 0, the readout if q = 1; the readout is
**initialised maximally** if k + r = 1 (propositions 5.3, 5.5); muP is the only stable one that does all (theorem 5.6).

Reference: Yang & Hu 2021 (arXiv:2011.14522); Adam: Yang & Littwin 2023 (arXiv:2308.01814), definition 2.8.5. All
exponents above are invariant under `shift`, which a shared c is not: with c_l = c they are the paper's.
"""

from fractions import Fraction
from typing import NamedTuple

from jflat.core import check
from jflat.width.parametrisation import ABC, HALF

__all__ = ["Classification", "Slopes", "classify"]

ONE = Fraction(1)


class Slopes(NamedTuple):
    """Powers of n by which sizes grow, for the layers 1, ..., L, L + 1 (the output)."""

    delta: tuple[Fraction, ...]
    """Of the change of the preactivation h^l_t - h^l_0, last the output's."""
    dwx: tuple[Fraction, ...]
    """Of (W^l_t - W^l_0) x^{l-1}_t, what the layer's own update did."""
    w0dx: tuple[Fraction | None, ...]
    """Of W^l_0 (x^{l-1}_t - x^{l-1}_0), what its input's change did; None in the first layer, whose input is given."""


class Classification(NamedTuple):
    """What `classify` says of a parametrisation at depth L."""

    depth: int
    """L, the number of hidden layers."""
    r_layers: tuple[Fraction, ...]
    """(r_1, ..., r_L)."""
    r: Fraction
    """Their least."""
    violations: tuple[str, ...]
    """The inequalities of stability that fail, with their values; empty if stable."""
    is_nontrivial: bool
    """Whether a stable network's function moves in O(1) time; False where unstable."""
    regime: str
    """"unstable", "trivial", "kernel" or "feature"."""
    is_updated_maximally: tuple[bool, ...]
    """For the layers 1, ..., L + 1."""
    is_initialised_maximally: bool
    """Of the readout."""
    slopes: Slopes
    """From the second step on."""
    first_slopes: Slopes
    """After one step; they differ where the readout's update outgrows its initial value."""

    @property
    def is_stable(self) -> bool:
        """Whether no inequality fails."""
        return not self.violations


def classify(p: ABC, depth: int) -> Classification:
    """Stable or which inequality fails, trivial, kernel or feature regime, and the predicted slope of each layer.

    Args:
      p: a parametrisation.
      depth: L >= 1, the number of hidden layers; with L = 1 there are no hidden matrices, and p.hidden has no say.

    Returns:
      A `Classification`, exact fractions.

    Raises:
      ValueError: for depth < 1.

    Slopes are those of the equations of the module's docstring while activations are not saturated: at a bounded
    activation an unstable network's preactivations grow so, its activations cannot. That of w0dx in the readout is an
    upper bound where q < k (the change of x^L is then mostly uncorrelated with W^{L+1}_0) and tight otherwise.

    >>> from jflat.width.parametrisation import mup, sp
    >>> result = classify(sp(c=1), depth=2)
    >>> result.regime, str(result.r), [str(slope) for slope in result.slopes.delta]
    ('kernel', '1/2', ['-3/2', '-1/2', '0'])
    >>> classify(sp(), depth=2).violations
    ('r >= 0 fails: r = -1', 'q >= 1 fails: q = 0 (the readout learns too fast)', 'k + r >= 1 fails: k + r = -1/2')
    >>> classify(mup(), depth=2).is_updated_maximally
    (True, True, True)
    """
    check.require_integer("classify", "depth", depth, 1)
    k = p.output.a + p.output.b
    q = p.rate_power * p.output.a + p.output.c
    r_layers = _r_layers(p, depth, min(k, q))
    r = min(r_layers)

    violations = []
    if p.input.a + p.input.b != 0:
        violations.append(f"a_1 + b_1 = 0 fails: a_1 + b_1 = {p.input.a + p.input.b}")
    if depth > 1 and p.hidden.a + p.hidden.b != HALF:
        violations.append(f"a_l + b_l = 1/2 fails: a_l + b_l = {p.hidden.a + p.hidden.b}")
    if k < HALF:
        violations.append(f"k >= 1/2 fails: k = a_(L+1) + b_(L+1) = {k}")
    if r < 0:
        violations.append(f"r >= 0 fails: r = {r}")
    if q < 1:
        violations.append(f"q >= 1 fails: q = {q} (the readout learns too fast)")
    if k + r < 1:
        violations.append(f"k + r >= 1 fails: k + r = {k + r}")
    is_nontrivial = not violations and (q == 1 or k + r == 1)
    regime = "unstable" if violations else "trivial" if not is_nontrivial else "feature" if r == 0 else "kernel"
    return Classification(
        depth,
        r_layers,
        r,
        tuple(violations),
        is_nontrivial,
        regime,
        (*(value == 0 for value in r_layers), q == 1),
        k + r == 1,
        _slopes(r_layers, k, q),
        _slopes(_r_layers(p, depth, k), k, q),
    )


def _r_layers(p: ABC, depth: int, gradient: Fraction) -> tuple[Fraction, ...]:
    """(r_1, ..., r_L) for gradients of the size n^{-gradient}, to which Adam is blind."""
    size = gradient if p.optimizer == "sgd" else Fraction(0)
    first, later = (size + p.rate_power * e.a + e.c for e in (p.input, p.hidden))
    return (first, *[later - 1] * (depth - 1))


def _slopes(r_layers: tuple[Fraction, ...], k: Fraction, q: Fraction) -> Slopes:
    so_far = [min(r_layers[: i + 1]) for i in range(len(r_layers))]
    through = ONE - (k + so_far[-1])
    hidden = tuple(-value for value in so_far)
    return Slopes(
        (*hidden, max(ONE - q, through)),
        (*(-value for value in r_layers), ONE - q),
        (None, *hidden[:-1], through),
    )
