"""The `mup` package (of the authors of muP) on an MLP with three layers and biases: the numbers it multiplies by.

`MuReadout` in place of the last layer, `set_base_shapes`, `MuSGD` and `MuAdam`, as its README says. Factors are read
off, not derived: the initial weights over those that torch draws with the same seed in the same network without `mup`;
the rates of the optimisers' groups; the multiplier of the readout.
"""

import mup
import numpy as np
import torch
from torch import nn

PACKAGES = ("mup", "torch")


def _network(inputs, widths, outputs, readout):
    torch.manual_seed(0)
    first, second = widths
    layers = [nn.Linear(inputs, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), readout(second, outputs)]
    return nn.Sequential(*layers)


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    inputs, outputs, base = sizes["inputs"], sizes["outputs"], sizes["base"]

    def factors():
        """(optimiser, parameter) -> initial size as torch's times this, multiplier, rate; parameters in order."""
        plain = _network(inputs, sizes["widths"], outputs, nn.Linear)
        model = _network(inputs, sizes["widths"], outputs, mup.MuReadout)
        small = _network(inputs, base, outputs, mup.MuReadout)
        delta = _network(inputs, [2 * width for width in base], outputs, mup.MuReadout)
        mup.set_base_shapes(model, small, delta=delta)
        initial = [
            float((ours / theirs).median()) for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True)
        ]
        weights = list(model.parameters())
        multipliers = [1.0] * len(weights)
        multipliers[-2] = model[-1].output_mult / model[-1].width_mult()
        found = {"initial": np.array(initial), "multipliers": np.array(multipliers)}
        for name, optimiser in (("sgd", mup.MuSGD), ("adam", mup.MuAdam)):
            groups = optimiser(weights, lr=1.0).param_groups
            rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
            found[f"rates_{name}"] = np.array([rates[id(weight)] for weight in weights])
        return found

    return {"factors": (factors, lambda result: result)}
