"""Critical points: finding them, saying what they are, and the networks of which all of them are known.

- `autoencoder_classes` -> `AutoencoderClasses`: every critical point of the deep linear autoencoder, with loss, index
  and nullity; `autoencoder_critical_point`, `autoencoder_loss`, `equivalent_samples`, `match` -> `AutoencoderMatch`

What a point is:

- `classify` -> `Classification`, `Kind`: critical, gradient-flat or neither, and of what index
- `inertia_dense`, `inertia_ldl` -> `Inertia`: numbers of negative, zero and positive eigenvalues, exact at a cutoff
- `negative_directions_lanczos` -> `NegativeDirections`: a lower bound of the index, with certificates
- `index_stochastic` -> `StochasticIndex`: an estimate of it, with the bracket of its bias
- `flatness_curve`, `flatness_curve_lanczos` -> `FlatnessCurve`: the part of the gradient in the near-kernel, F(tau)
- `newton_residuals` -> `NewtonResiduals`, `Norm`: the published r and r_H
- `spectral_norm` -> `SpectralNorm`: the unit of all cutoffs

Finders, from a loss and a start:

- `find_critical_points` -> `FinderResult`, `FinderTrace`, `Iterate`: runs a `Method` (`Point`, `Step`, `LineSearch`)
- `newton_mr`: steps of least residual and least length, searched on the gradient norm
- `newton_tr`: the best of several dampings; `newton_pinv`: exact, for small problems
- `saddle_free_newton`: an optimiser that leaves saddles, for comparison
- `gradient_norm_minimisation`: gradient descent on |g|^2, with fixed step or line search
- `trajectory`, `sample_starts`: training, and starts along it, uniform in height or in iteration
- `quartic`, `quartic_grid`, `QUARTIC_CRITICAL`, `QUARTIC_FLAT`: the smallest loss with a gradient-flat trap
"""

from jflat.critical.classify import Classification, Kind, classify
from jflat.critical.driver import FinderResult, FinderTrace, Iterate, find_critical_points
from jflat.critical.gradient_flatness import (
    FlatnessCurve,
    NewtonResiduals,
    Norm,
    flatness_curve,
    flatness_curve_lanczos,
    newton_residuals,
)
from jflat.critical.gradient_norm_minimisation import gradient_norm_minimisation
from jflat.critical.inertia import Inertia, inertia_dense, inertia_ldl
from jflat.critical.linear_autoencoder import (
    AutoencoderClasses,
    AutoencoderMatch,
    AutoencoderWeights,
    autoencoder_classes,
    autoencoder_critical_point,
    autoencoder_loss,
    equivalent_samples,
    match,
)
from jflat.critical.method import LineSearch, Method, Point, Step
from jflat.critical.negative_directions import NegativeDirections, negative_directions_lanczos
from jflat.critical.newton_mr import newton_mr
from jflat.critical.newton_pinv import newton_pinv
from jflat.critical.newton_tr import newton_tr
from jflat.critical.quartic import QUARTIC_CRITICAL, QUARTIC_FLAT, quartic, quartic_grid
from jflat.critical.saddle_free_newton import saddle_free_newton
from jflat.critical.spectral_norm import SpectralNorm, spectral_norm
from jflat.critical.starts import sample_starts, trajectory
from jflat.critical.stochastic_index import StochasticIndex, index_stochastic

__all__ = [
    "QUARTIC_CRITICAL",
    "QUARTIC_FLAT",
    "AutoencoderClasses",
    "AutoencoderMatch",
    "AutoencoderWeights",
    "Classification",
    "FinderResult",
    "FinderTrace",
    "FlatnessCurve",
    "Inertia",
    "Iterate",
    "Kind",
    "LineSearch",
    "Method",
    "NegativeDirections",
    "NewtonResiduals",
    "Norm",
    "Point",
    "SpectralNorm",
    "Step",
    "StochasticIndex",
    "autoencoder_classes",
    "autoencoder_critical_point",
    "autoencoder_loss",
    "classify",
    "equivalent_samples",
    "find_critical_points",
    "flatness_curve",
    "flatness_curve_lanczos",
    "gradient_norm_minimisation",
    "index_stochastic",
    "inertia_dense",
    "inertia_ldl",
    "match",
    "negative_directions_lanczos",
    "newton_mr",
    "newton_pinv",
    "newton_residuals",
    "newton_tr",
    "quartic",
    "quartic_grid",
    "saddle_free_newton",
    "sample_starts",
    "spectral_norm",
    "trajectory",
]
