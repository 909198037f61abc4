"""Branches under vmap. Oracle: `lax.cond` itself, whose values are the same; and the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core.branch import any_member, rarely


def grow(state, x, key):
    return {"a": state["a"] * 2 + x, "n": state["n"] + 1, "noise": jax.random.uniform(key, state["noise"].shape)}


def steps(branch):
    """Three steps of a scan with a branch on trees, of which one operand is a typed key."""

    def run(predicate, a, x, key):
        state = {"a": a, "n": jnp.zeros((), jnp.int32), "noise": jnp.zeros(2)}

        def step(state, i):
            return branch(predicate & (i != 1), grow, state, x, jax.random.fold_in(key, i)), None

        return jax.lax.scan(step, state, jnp.arange(3))[0]

    return run


def plain(predicate, fn, default, *operands):
    return jax.lax.cond(predicate, fn, lambda default, *_: default, default, *operands)


CASES = {
    "no vmap": ((), np.array(True)),
    "differing": (((0, 0, None, None),), np.array([True, False, True])),
    "none needs it": (((0, 0, None, None),), np.zeros(3, bool)),
    "the predicate is shared": (((None, 0, 0, 0),), np.array(True)),
    "only the predicate differs": (((0, None, None, None),), np.array([True, False, True])),
    "nested": (((0, 0, None, None), (0, None, 0, 0)), np.array([[True, False, False], [False, False, False]]).T),
}


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_cond(case, key):
    axes, predicate = CASES[case]
    sizes = {"a": (4,), "x": (), "key": ()}
    for axis in axes:
        for name, i in (("a", 1), ("x", 2), ("key", 3)):
            if axis[i] == 0:
                sizes[name] = (3 if axis is axes[0] else 2, *sizes[name])
    if len(axes) == 2:
        sizes = {"a": (3, 4), "x": (2,), "key": (2,)}
    rng = np.random.default_rng(0)
    a, x = (jnp.asarray(rng.normal(size=sizes[name])) for name in ("a", "x"))
    keys = jax.random.split(key, sizes["key"]) if sizes["key"] else key
    wanted, got = steps(plain), steps(rarely)
    for axis in reversed(axes):
        wanted, got = jax.vmap(wanted, in_axes=axis), jax.vmap(got, in_axes=axis)
    wanted = jax.jit(wanted)(predicate, a, x, keys)
    for run in (got, jax.jit(got)):
        jax.tree.map(np.testing.assert_array_equal, wanted, run(predicate, a, x, keys))


def test_the_compiled_program_still_branches(key):
    arguments = jnp.ones(3, bool), jnp.ones((3, 4)), jnp.ones(()), key
    programs = [
        jax.jit(jax.vmap(steps(branch), in_axes=(0, 0, None, None))).lower(*arguments).compile().as_text()
        for branch in (plain, rarely)
    ]
    assert [" conditional(" in text for text in programs] == [False, True]


def test_derivatives_also_by_what_the_branch_closes_over():
    def total(branch, x, c):
        members = jax.vmap(lambda predicate, x: branch(predicate, lambda x: jnp.sin(x) * c, x))
        return jnp.sum(members(jnp.array([True, False]), x))

    x, c = jnp.array([0.3, 0.5]), jnp.float32(2.0)
    wanted, got = (jax.jit(jax.grad(total, (1, 2)), static_argnums=0)(branch, x, c) for branch in (plain, rarely))
    jax.tree.map(np.testing.assert_array_equal, wanted, got)
    np.testing.assert_allclose(got[0], [2 * np.cos(0.3), 1.0], rtol=1e-6)
    np.testing.assert_allclose(got[1], np.sin(0.3), rtol=1e-6)


def test_all_members_go_on_until_the_last_stops_and_nothing_is_selected():
    def count(limit):
        return jax.lax.while_loop(lambda c: any_member(c[0] < limit), lambda c: (c[0] + 1, c[1] + limit), (0, 0))

    limits = jnp.array([2, 5, 3])
    turns, sums = jax.vmap(count, out_axes=(None, 0))(limits)
    assert int(turns) == 5
    assert sums.tolist() == [10, 25, 15]
    assert "select" not in str(jax.make_jaxpr(jax.vmap(count))(limits))
    assert int(count(jnp.asarray(4))[0]) == 4
    nested = jax.vmap(jax.vmap(count, out_axes=(None, 0)), out_axes=(None, 0))(jnp.array([[1, 2], [7, 3]]))
    assert int(nested[0]) == 7
