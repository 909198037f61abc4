"""Models: init and apply on plain dictionaries of arrays, one interface with and without batch normalisation.

- `mlp`, `convnet`: a multi-layer perceptron and a small convolutional network, fast under `scan` and `vmap`
- `resnet`: a residual network for small images, ResNet-18 by default
- `perceptron`, `committee`, `parity_machine`, `binarise`: one output +-1, real or binary weights
- `from_linen`: the same interface for a flax module of your own
- `layer_outputs`: what every layer of such a network puts out, by name
- `Model`: the interface (init, apply, apply_train, batch_statistics, has_state)
- `layers`: a convolution that is fast inside loops, for your own modules too

The networks are flax linen modules. The rest of the library sees only functions and does not need flax.
"""

import importlib.util

if importlib.util.find_spec("flax") is None:
    raise ImportError("jflat.models needs flax: pip install 'jflat[experiments]'")

from jflat.models import layers
from jflat.models.activations import layer_outputs
from jflat.models.machines import binarise, committee, parity_machine, perceptron
from jflat.models.model import Model, from_linen
from jflat.models.networks import convnet, mlp
from jflat.models.residual import resnet

__all__ = [
    "Model",
    "binarise",
    "committee",
    "convnet",
    "from_linen",
    "layer_outputs",
    "layers",
    "mlp",
    "parity_machine",
    "perceptron",
    "resnet",
]
