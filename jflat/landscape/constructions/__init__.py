"""The constructions behind the theorems on the global landscape, as small pure functions with their certificates.

Where minima are bad:

- `bad_local_minimum` -> `BadMinimum`: a bad local minimum of loss 1/2 at any width, smooth activation
- `leave_plateau` -> `Plateau`: the way out of it at equal loss, to a saddle
- `sigmoid_minima` -> `SigmoidMinima`: one neuron, 2^d strict minima
- `duplicate_neuron`, `separation_matrix`: lines of critical points of the next wider network
- `affine_trap`, `dead_trap` -> `ReluTrap`: ReLU networks that cannot move on, at any width
- `train_students` -> `StudentRuns`, `student_loss`, `relu_kernel`, `student_certificate`: spurious minima of a student

What removes them, and at what price:

- `with_exponential_neuron`, `add_neuron`, `neuron_identity`, `exit_by_neuron` -> `NeuronExit`: one unit more, any loss
- `with_factor`, `factor_identity`, `factor_flow` -> `FactorFlow`: no unit more, but a path to infinity

What wide networks have instead:

- `wide_path` -> `WidePath`, `along`, `half_width_minimum`, `pad`: a path without barrier between two minima
- `magnitude_prune`, `rewind`, `keep_pruned`, `full_mask`, `remaining`: lottery tickets
- `instability` -> `Instability`: are two children of one parent connected by a straight line?

That every local minimum of a deep *linear* network is global is checked by enumeration in `jflat.critical`.

Common to them: `certify` -> `Certificate` (gradient, spectrum, probes); `OneHidden`, `predict`, `half_mean_square`.
"""

from jflat.landscape.constructions.certificate import Certificate, certify
from jflat.landscape.constructions.duplicated_neuron import duplicate_neuron, separation_matrix
from jflat.landscape.constructions.exponential_neuron import (
    ExponentialNeuron,
    NeuronExit,
    WithNeuron,
    add_neuron,
    exit_by_neuron,
    neuron_identity,
    with_exponential_neuron,
)
from jflat.landscape.constructions.local_minimum import (
    BadMinimum,
    Plateau,
    bad_local_minimum,
    hard_labels,
    leave_plateau,
)
from jflat.landscape.constructions.loss_factor import (
    FactorFlow,
    WithFactor,
    factor_flow,
    factor_identity,
    with_factor,
)
from jflat.landscape.constructions.one_hidden import OneHidden, half_mean_square, predict
from jflat.landscape.constructions.pruning import (
    Instability,
    full_mask,
    instability,
    keep_pruned,
    magnitude_prune,
    remaining,
    rewind,
)
from jflat.landscape.constructions.relu_traps import ReluTrap, affine_trap, dead_trap
from jflat.landscape.constructions.sigmoid_minima import SigmoidMinima, sigmoid_minima, sigmoid_neuron_loss
from jflat.landscape.constructions.student_teacher import (
    StudentRuns,
    relu_kernel,
    student_certificate,
    student_loss,
    train_students,
)
from jflat.landscape.constructions.wide_path import WidePath, along, half_width_minimum, pad, wide_path

__all__ = [
    "BadMinimum",
    "Certificate",
    "ExponentialNeuron",
    "FactorFlow",
    "Instability",
    "NeuronExit",
    "OneHidden",
    "Plateau",
    "ReluTrap",
    "SigmoidMinima",
    "StudentRuns",
    "WidePath",
    "WithFactor",
    "WithNeuron",
    "add_neuron",
    "affine_trap",
    "along",
    "bad_local_minimum",
    "certify",
    "dead_trap",
    "duplicate_neuron",
    "exit_by_neuron",
    "factor_flow",
    "factor_identity",
    "full_mask",
    "half_mean_square",
    "half_width_minimum",
    "hard_labels",
    "instability",
    "keep_pruned",
    "leave_plateau",
    "magnitude_prune",
    "neuron_identity",
    "pad",
    "predict",
    "relu_kernel",
    "remaining",
    "rewind",
    "separation_matrix",
    "sigmoid_minima",
    "sigmoid_neuron_loss",
    "student_certificate",
    "student_loss",
    "train_students",
    "wide_path",
    "with_exponential_neuron",
    "with_factor",
]
