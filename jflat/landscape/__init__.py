"""The global landscape: paths between solutions, symmetries that hide them, and pictures of the loss around them.

Paths and barriers:

- `linear_path`, `linear_barrier`, `path_losses` -> `PathResult`: the loss on a path, and its barrier by two definitions
- `connect` -> `CurveResult`: Bezier curves and chains of low loss between two solutions; `straight_points`,
  `curve_path`, `bezier`, `polychain`: what they start from, and curves as paths
- `elastic_band` -> `BandResult`: the lowest pass between two minima, by a nudged elastic band with insertions

Symmetries:

- `match_weights`, `match_activations` -> `AlignmentResult`: permutations of hidden units that bring networks together
- `sequential`: which axes such permutations act on, for a chain of layers; `permute`, `random_permutations`

Pictures:

- `random_directions`, `normalise_direction`: raw, layer- and filter-normalised directions
- `trajectory_plane` -> `TrajectoryPlane`: principal directions of a training run
- `loss_surface` -> `SurfaceResult`: the loss on a line or a plane, as arrays

Theorems:

- `constructions`: bad minima, what removes them, and paths between good ones, each with its certificate
"""

from jflat.landscape import constructions
from jflat.landscape.alignment import (
    AlignmentResult,
    match_activations,
    match_weights,
    permute,
    random_permutations,
    sequential,
)
from jflat.landscape.curves import CurveResult, bezier, connect, curve_path, polychain, straight_points
from jflat.landscape.directions import TrajectoryPlane, normalise_direction, random_directions, trajectory_plane
from jflat.landscape.elastic_band import BandResult, elastic_band
from jflat.landscape.interpolation import PathResult, linear_barrier, linear_path, path_losses
from jflat.landscape.surfaces import SurfaceResult, loss_surface

__all__ = [
    "AlignmentResult",
    "BandResult",
    "CurveResult",
    "PathResult",
    "SurfaceResult",
    "TrajectoryPlane",
    "bezier",
    "connect",
    "constructions",
    "curve_path",
    "elastic_band",
    "linear_barrier",
    "linear_path",
    "loss_surface",
    "match_activations",
    "match_weights",
    "normalise_direction",
    "path_losses",
    "permute",
    "polychain",
    "random_directions",
    "random_permutations",
    "sequential",
    "straight_points",
    "trajectory_plane",
]
