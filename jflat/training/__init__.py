"""Training: the loop (one program, or stepped from the host), seeds, mesh placement, checkpoints and resume.

- `make_train`: a loss, an initialiser, an optax chain and data become one pure function of a key
- `train_seeds`: many seeds from the host, with checkpoints, progress and a mesh
- `reestimate_statistics`: batch-norm statistics of parameters that were never trained at
- `Train`, `TrainState`, `TrainResult`: what these functions pass on
"""

from jflat.training.run import Train, TrainResult, TrainState
from jflat.training.seeds import train_seeds
from jflat.training.train import make_train, reestimate_statistics

__all__ = ["Train", "TrainResult", "TrainState", "make_train", "reestimate_statistics", "train_seeds"]
