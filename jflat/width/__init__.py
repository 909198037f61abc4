"""Feature learning at infinite width.

- `linear_limit_init`, `linear_limit_apply`, `linear_limit_gram` -> `LinearState`: the exact limit of a linear network
  with one hidden layer in muP; `sample_finite`, `gaussian_embedding`: its networks of finite width;
  `reduce_width`: a network of any width as one of width d + do
- `assert_rotation_equivariant`: which optimisers have that limit
- `maml_loss`, `maml_outputs`, `Task`: MAML of these networks, first and second order
- `cbow_init`, `cbow_step`, `cbow_epoch` -> `CbowState`: Word2Vec, with `cbow_batches`, `noise_table` of a text,
  `cbow_sample` and `cbow_linear` of a state, `cbow_loss`; `analogies`, `analogy_ranks` of word vectors

**Parametrisations.**

- `sp`, `ntp`, `mfp`, `mup` -> `ABC`; `shift`, `fold`, `canonical`: the same networks in other coordinates
- `classify` -> `Classification`: stable or which inequality fails, kernel or feature regime, slopes of the layers
- `infer_infshapes` -> `InfShape`, `Role`: which axes grow; `save_infshapes`, `load_infshapes`
- `init_transform`; `multipliers`, `reparametrise`: the initialiser side
- `abc_optimizer`, of `scale_by_abc`, `prescale_by_abc`, `clip_by_abc_norm` (`abc_squared_norm`),
  `add_decayed_weights_abc`: the optimiser side
- `coord_check` -> `CoordTable`; `fit_slopes`, `predicted_slopes`, `assert_exponents`, `linear_probe_loss`, `Linear`:
  does each layer move as predicted? `plain_mlp`: the network of the theory
- `shallow_limit` -> `ShallowResult`: one hidden layer with any activation, by quadrature or particles;
  `shallow_limit_init`, `shallow_limit_step`, `shallow_limit_apply`, `shallow_limit_kernel` on a `ParticleState`
- `tp_limit` -> `TPResult`: any depth, by the Tensor Program's particles, with and without the correction for W^T;
  `tp_limit_init`, `tp_limit_step`, `tp_limit_apply` on a `TPState`
- `dual_kernels` -> `KernelPair`, `kernel_descent` -> `KernelDescent`: the kernel limits (GP, NTK) and training in them;
  `kernel_machine_init`, `kernel_machine_apply`, `kernel_machine_step` -> `KernelMachine`: the learner that appends data
"""

from jflat.width.cbow import (
    CbowState,
    cbow_epoch,
    cbow_init,
    cbow_linear,
    cbow_loss,
    cbow_sample,
    cbow_step,
)
from jflat.width.cbow_examples import CbowBatch, cbow_batches, noise_table
from jflat.width.classify import Classification, Slopes, classify
from jflat.width.coordinates import (
    CoordTable,
    Linear,
    Slope,
    assert_exponents,
    coord_check,
    fit_slopes,
    linear_probe_loss,
    predicted_slopes,
)
from jflat.width.equivariance import assert_rotation_equivariant
from jflat.width.initialiser import init_transform, multipliers, reparametrise
from jflat.width.kernel_limit import (
    KernelDescent,
    KernelMachine,
    KernelPair,
    dual_kernels,
    kernel_descent,
    kernel_machine_apply,
    kernel_machine_init,
    kernel_machine_step,
)
from jflat.width.linear_limit import (
    LinearState,
    gaussian_embedding,
    linear_limit_apply,
    linear_limit_gram,
    linear_limit_init,
    reduce_width,
    sample_finite,
)
from jflat.width.maml import Task, maml_loss, maml_outputs
from jflat.width.networks import PlainNetwork, plain_mlp
from jflat.width.optimiser import (
    abc_optimizer,
    abc_squared_norm,
    add_decayed_weights_abc,
    clip_by_abc_norm,
    prescale_by_abc,
    scale_by_abc,
)
from jflat.width.parametrisation import ABC, Exponents, canonical, fold, mfp, mup, ntp, shift, sp
from jflat.width.shallow import (
    ParticleState,
    ShallowResult,
    shallow_limit,
    shallow_limit_apply,
    shallow_limit_init,
    shallow_limit_kernel,
    shallow_limit_step,
)
from jflat.width.shapes import BIAS_NAMES, InfShape, Role, infer_infshapes, load_infshapes, save_infshapes
from jflat.width.tensor_program import (
    TPLayer,
    TPResult,
    TPState,
    tp_limit,
    tp_limit_apply,
    tp_limit_init,
    tp_limit_step,
)
from jflat.width.word_vectors import analogies, analogy_ranks

__all__ = [
    "ABC",
    "BIAS_NAMES",
    "CbowBatch",
    "CbowState",
    "Classification",
    "CoordTable",
    "Exponents",
    "InfShape",
    "KernelDescent",
    "KernelMachine",
    "KernelPair",
    "Linear",
    "LinearState",
    "ParticleState",
    "PlainNetwork",
    "Role",
    "ShallowResult",
    "Slope",
    "Slopes",
    "TPLayer",
    "TPResult",
    "TPState",
    "Task",
    "abc_optimizer",
    "abc_squared_norm",
    "add_decayed_weights_abc",
    "analogies",
    "analogy_ranks",
    "assert_exponents",
    "assert_rotation_equivariant",
    "canonical",
    "cbow_batches",
    "cbow_epoch",
    "cbow_init",
    "cbow_linear",
    "cbow_loss",
    "cbow_sample",
    "cbow_step",
    "classify",
    "clip_by_abc_norm",
    "coord_check",
    "dual_kernels",
    "fit_slopes",
    "fold",
    "gaussian_embedding",
    "infer_infshapes",
    "init_transform",
    "kernel_descent",
    "kernel_machine_apply",
    "kernel_machine_init",
    "kernel_machine_step",
    "linear_limit_apply",
    "linear_limit_gram",
    "linear_limit_init",
    "linear_probe_loss",
    "load_infshapes",
    "maml_loss",
    "maml_outputs",
    "mfp",
    "multipliers",
    "mup",
    "noise_table",
    "ntp",
    "plain_mlp",
    "predicted_slopes",
    "prescale_by_abc",
    "reduce_width",
    "reparametrise",
    "sample_finite",
    "save_infshapes",
    "scale_by_abc",
    "shallow_limit",
    "shallow_limit_apply",
    "shallow_limit_init",
    "shallow_limit_kernel",
    "shallow_limit_step",
    "shift",
    "sp",
    "tp_limit",
    "tp_limit_apply",
    "tp_limit_init",
    "tp_limit_step",
]
