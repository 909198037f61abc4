"""The global landscape: paths between solutions, symmetries that hide them, and pictures of the loss around them.

Paths and barriers:

- `linear_path`, `linear_barrier`, `path_losses` -> `PathResult`: the loss on a path, and its barrier by two definitions

Pictures:

- `random_directions`, `normalise_direction`: raw, layer- and filter-normalised directions
- `trajectory_plane` -> `TrajectoryPlane`: principal directions of a training run
- `loss_surface` -> `SurfaceResult`: the loss on a line or a plane, as arrays
"""

from jflat.landscape.directions import TrajectoryPlane, normalise_direction, random_directions, trajectory_plane
from jflat.landscape.interpolation import PathResult, linear_barrier, linear_path, path_losses
from jflat.landscape.surfaces import SurfaceResult, loss_surface

__all__ = [
    "PathResult",
    "SurfaceResult",
    "TrajectoryPlane",
    "linear_barrier",
    "linear_path",
    "loss_surface",
    "normalise_direction",
    "path_losses",
    "random_directions",
    "trajectory_plane",
]
