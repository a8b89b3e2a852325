"""Tests of what programs cost, by their jaxpr and by their HLO."""

import jax
import jax.numpy as jnp
import pytest

from experiments import programs


def jaxpr(function, *shapes):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.make_jaxpr(function)(*args).jaxpr


def count(function, *shapes, on_chip=1e9):
  total, once = programs.count(jaxpr(function, *shapes), on_chip)
  return total.plus(once)


def test_a_product_is_counted():
  found = count(lambda a, b: a @ b, (3, 4), (4, 5))
  assert found.wide == 2 * 3 * 4 * 5
  assert found.bytes == 4 * (12 + 20 + 15)


def test_narrow_products_are_apart():
  to = lambda x: x.astype(jnp.bfloat16)
  found = count(lambda a, b: to(a) @ to(b), (3, 4), (4, 5))
  assert (found.narrow, found.wide) == (120, 0)


def test_products_in_jit_cond_and_gradients_are_counted():
  product = jax.jit(lambda a, b: a @ b)
  branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, product, product, a, b)
  assert count(branch, (3, 4), (4, 5)).wide == 120
  gradient = jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))
  assert count(gradient, (3, 4), (4, 5)).wide == 2 * 120


def loop(a, b):
  return jax.lax.scan(lambda x, _: ((x @ b), None), a, length=7)[0]


@pytest.mark.parametrize(("on_chip", "reads"), [(400, 1), (399, 7)])
def test_a_loop_reads_its_weights_once_if_they_fit(on_chip, reads):
  found = count(loop, (3, 10), (10, 10), on_chip=on_chip)
  assert found.wide == 7 * 600
  # The carry is read and written at every time step.
  assert found.bytes == 7 * 2 * 120 + reads * 400


def test_what_no_output_needs_is_not_counted():
  assert count(lambda a, b: (a @ b, a)[1], (3, 4), (4, 5)).wide == 0


def test_a_loop_of_unknown_length_is_told():
  run = lambda a: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, a)
  found = count(run, (4, 4))
  assert (found.wide, found.unknown) == (128, 1)


def test_temporaries_live_until_their_last_use():
  # Two arrays of 400 bytes exist at a time, not three.
  function = lambda a: jnp.sin(jnp.cos(jnp.tanh(a)))
  assert programs.temporary(jaxpr(function, (10, 10))) == 800
  kept = lambda a: (jnp.sin(a), jnp.cos(a), jnp.tanh(a))
  assert programs.temporary(jaxpr(kept, (10, 10))) == 1200


def test_what_a_loop_stacks_is_held():
  run = lambda a: jax.lax.scan(lambda x, _: (x + 1, x), a, length=9)[1]
  found = programs.temporary(jaxpr(run, (100,)))
  assert 9 * 400 <= found <= 11 * 400


HLO = """
HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%inner (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} all-reduce(%p), to_apply=%add
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = f32[8]{0} fusion(%x), kind=kLoop, calls=%inner
}

ENTRY %main (p: f32[4,2]) -> f32[4,2] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body
  %a = (f32[4,2]{1,0:T(8,128)S(1)}, bf16[6]{0}, pred[3]{0}) all-reduce(%p, %q), to_apply=%add
  %g = f32[16]{0} all-gather-done(%h)
}
"""  # noqa: E501


def test_communication_is_found_in_and_out_of_loops():
  assert programs.collectives(HLO) == [
    programs.Collective("all-reduce", False, 1, 32 + 12 + 3),
    programs.Collective("all-reduce", True, 1, 32),
  ]
