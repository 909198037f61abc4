"""Models: init and apply on plain dictionaries of arrays, one interface with and without batch normalisation.

- `mlp`, `convnet`: a multi-layer perceptron and a small convolutional network, fast under `scan` and `vmap`
- `Model`: the interface (init, apply, apply_train, batch_statistics, has_state)
- `layers`: the layers they are made of
"""

from jflat.models import layers
from jflat.models.model import Model
from jflat.models.networks import convnet, mlp

__all__ = ["Model", "convnet", "layers", "mlp"]
