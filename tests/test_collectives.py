"""Counting what programs send. Oracles: HLO texts with bytes counted by hand; a product whose least is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.collectives import collectives
from jflat.core.mesh import make_mesh, place_batch, place_params
from jflat.curvature import hessian
from jflat.optim import couple_replicas, decoupled_coupling, elastic_averaging, parle
from jflat.training import make_train, train_seeds

PROGRAM = """
ENTRY %main.1 (param: f32[8,4], param.1: bf16[6]) -> f32[8,4] {
  %param = f32[8,4]{1,0} parameter(0), sharding={devices=[2,1]<=[2]}
  %param.1 = bf16[6]{0} parameter(1)
  %all-reduce = (f32[8,4]{1,0}, bf16[6]{0}) all-reduce(%param, %param.1), replica_groups={{0,1}}, to_apply=%add
  %sum = f32[8,4]{1,0} get-tuple-element(%all-reduce), index=0
  %all-gather-start = (f32[8,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%sum), replica_groups={{0,1}}, dimensions={0}
  %all-gather-done = f32[16,4]{1,0} all-gather-done(%all-gather-start)
  %part = f32[4,4]{1,0} reduce-scatter(f32[8,4]{1,0} %sum), replica_groups={{0,1}}, dimensions={0}, to_apply=%add
  ROOT %done = f32[8,4]{1,0} collective-permute(%sum), source_target_pairs={{0,1},{1,0}}
}
"""


def test_bytes_of_operands_by_hand():
    """A tuple; a started one counts once, by what goes in; shapes written beside operands; a root."""
    found = [(one.kind, one.bytes) for one in collectives(PROGRAM)]
    assert found == [("all-reduce", 140), ("all-gather", 128), ("reduce-scatter", 128), ("collective-permute", 128)]


def test_without_percent_signs():
    assert [one.bytes for one in collectives(PROGRAM.replace("%", ""))] == [140, 128, 128, 128]


def test_branches_and_what_they_call_are_told_from_the_rest():
    """Sixteen numbers in every step, eight in a branch, four in a loop of the other branch."""
    program = """
%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %r.1 = f32[4]{0} all-reduce(%p), to_apply=%add
}

%seldom (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %r.2 = f32[8]{0} all-reduce(%q), to_apply=%add
}

%often (s: f32[8]) -> f32[8] {
  %s = f32[8]{0} parameter(0)
  ROOT %loop = f32[8]{0} while(%s), condition=%enough, body=%body
}

ENTRY %main (x: f32[16], i: s32[]) -> f32[8] {
  %x = f32[16]{0} parameter(0)
  %r.3 = f32[16]{0} all-reduce(%x), to_apply=%add
  ROOT %c = f32[8]{0} conditional(%i, %r.3, %r.3), branch_computations={%often, %seldom}
}
"""
    found = {one.bytes: one.is_conditional for one in collectives(program)}
    assert found == {64: False, 32: True, 16: True}
    names = "true_computation=%often, false_computation=%seldom"
    program = program.replace("branch_computations={%often, %seldom}", names).replace("%", "")
    assert {one.bytes: one.is_conditional for one in collectives(program)} == found


def test_a_program_without_any():
    assert collectives(jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile().as_text()) == []


@pytest.mark.parametrize("num_devices", [2, 8])
def test_a_data_parallel_product_of_a_linear_model_sends_the_least(num_devices):
    """H v = X^T X v / M: one all-reduce of v's size, whatever the number of devices."""
    mesh = make_mesh(data=num_devices, devices=jax.devices()[:num_devices])
    x = np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32)
    operator = hessian(
        lambda w, x: 0.5 * jnp.mean((x @ w) ** 2), place_params(np.zeros(12, np.float32), mesh), place_batch(x, mesh)
    )
    vector = place_params(np.ones(12, np.float32), mesh)
    program = jax.jit(lambda operator, v: operator.matvec(v)).lower(operator, vector).compile()
    assert [(one.kind, one.bytes) for one in collectives(program.as_text())] == [("all-reduce", 4 * 12)]
    np.testing.assert_allclose(program(operator, vector), x.T @ (x @ np.ones(12)) / 16, rtol=1e-4)


COUPLED = {
    "in every step": lambda: couple_replicas(0.1, axis_name="replica"),
    "now and then": lambda: couple_replicas(0.1, axis_name="replica", period=2),
    "pulled now and then": lambda: couple_replicas(0.1, axis_name="replica", period=2, pull="refresh"),
    "decoupled": lambda: decoupled_coupling(0.1, 0.1, axis_name="replica", period=2),
    "elastic": lambda: elastic_averaging(optax.identity(), axis_name="replica", period=2),
    "Parle": lambda: parle(
        optax.sgd(0.1), optax.sgd(0.1), num_inner=2, gamma=0.1, rho=0.1, axis_name="replica", is_stacked=False
    ),
}


@pytest.mark.parametrize("coupling", COUPLED)
def test_a_step_of_coupled_replicas_sends_the_parameters_once_and_only_where_they_meet(coupling):
    """One all-reduce for the barycentre in the step, and one for the record of the interval; the rest is scalars."""
    size = 200
    loss_fn = lambda w, batch: 0.5 * jnp.mean((batch @ w) ** 2)  # noqa: E731
    tx = optax.chain(COUPLED[coupling](), optax.sgd(0.1) if coupling != "Parle" else optax.identity())
    data = np.random.default_rng(0).normal(size=(8, size)).astype(np.float32)
    train = make_train(loss_fn, lambda key: jnp.ones(size), tx, data, num_steps=2, batch_size=4, num_replicas=4)
    mesh = make_mesh(replica=2, devices=jax.devices()[:2])
    result = train_seeds(train, jax.random.split(jax.random.key(0), 1), mesh=mesh)
    advance = jax.jit(lambda train, state: jax.vmap(train.advance)(state))
    found = collectives(advance.lower(train, result.state).compile().as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    large = [one.bytes for one in found if one.bytes > 16]
    assert len(large) == 2
    assert all(4 * size <= number <= 4 * size + 8 for number in large)
    assert sum(one.is_conditional for one in found if one.bytes > 16) == (coupling != "in every step")
