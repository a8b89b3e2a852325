"""Tests which of a kernel and its plain form runs, and their derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from recurrent.kernels import transforms


def fast(factor, x, flags):
  """Unlike its plain form, so that it shows which of them ran."""
  return {"y": factor * x + 1000, "n": flags}


def plain(factor, x, flags):
  return {"y": factor * jnp.sin(x), "n": flags}


def run(x, platform=None):
  flags = jnp.ones((2,), bool)
  out = transforms.kernel(fast, plain, (3.0,), x, flags, platform=platform)
  assert out["n"].dtype == bool
  return out["y"]


X = jnp.array([0.5, 2.0])


@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_kernel_runs_where_it_can(how):
  np.testing.assert_allclose(how(run)(X), 3 * X + 1000)
  on_cpu = functools.partial(run, platform="cpu")
  np.testing.assert_allclose(how(on_cpu)(X), 3 * X + 1000)


def test_elsewhere_its_plain_form_runs():
  on_tpu = functools.partial(run, platform="tpu")
  np.testing.assert_allclose(on_tpu(X), 3 * jnp.sin(X))


def test_what_is_exported_is_the_plain_form_of_a_kernel_of_one_platform():
  for platform, want in ((None, 3 * X + 1000), ("cpu", 3 * jnp.sin(X))):
    exported = export.export(jax.jit(functools.partial(run, platform=platform)))
    np.testing.assert_allclose(exported(X).call(X), want)


@pytest.mark.parametrize("platforms", [("tpu",), ("cuda",)])
def test_what_is_lowered_for_another_platform_is_the_plain_form(platforms):
  on_cpu = jax.jit(functools.partial(run, platform="cpu"))
  text = on_cpu.trace(X).lower(lowering_platforms=platforms).as_text()
  assert "sine" in text and "sine" not in on_cpu.lower(X).as_text()


def test_derivatives_are_those_of_the_plain_form():
  value = lambda x: run(x).sum()
  want = 3 * jnp.cos(X)
  np.testing.assert_allclose(jax.grad(value)(X), want, rtol=1e-6)
  np.testing.assert_allclose(
    jax.jvp(value, (X,), (X,))[1], (want * X).sum(), rtol=1e-6
  )
  np.testing.assert_allclose(
    jax.hessian(value)(X), jnp.diag(-3 * jnp.sin(X)), atol=1e-6
  )


def test_a_mapped_kernel_is_still_one():
  many = jnp.stack([X, X + 1, X + 2])
  np.testing.assert_allclose(jax.vmap(run)(many), 3 * many + 1000)
  mapped = functools.partial(run, platform="tpu")
  np.testing.assert_allclose(jax.vmap(mapped)(many), 3 * jnp.sin(many))
  slopes = jax.vmap(jax.grad(lambda x: run(x).sum()))(many)
  np.testing.assert_allclose(slopes, 3 * jnp.cos(many), rtol=1e-5)


# Passes. The reverse pass below is wrong on purpose: twice the derivative.


def cubes(power, x, count):
  return x**power, count + 1


PASSES = transforms.Passes(
  run=cubes,
  forward=lambda power, x, count: (cubes(power, x, count), x),
  tangent=lambda power, x, d: (power * x ** (power - 1) * d[0], d[1]),
  backward=lambda power, x, d: (2 * power * x ** (power - 1) * d[0], None),
)


def cubed(x):
  y, count = transforms.call(PASSES, (3,), x, jnp.int32(4))
  assert count.dtype == jnp.int32
  return y


def total(x):
  return cubed(x).sum()


def test_reverse_is_by_the_reverse_pass_and_forward_by_the_tangent():
  np.testing.assert_allclose(cubed(X), X**3)
  for how in (lambda f: f, jax.jit):
    np.testing.assert_allclose(how(jax.grad(total))(X), 6 * X**2)
    _, slope = how(lambda x: jax.jvp(cubed, (x,), (jnp.ones_like(x),)))(X)
    np.testing.assert_allclose(slope, 3 * X**2)


def test_second_derivatives_are_those_of_the_passes():
  twice = lambda outer, inner: jnp.diag(outer(inner(total))(X))
  np.testing.assert_allclose(twice(jax.jacfwd, jax.grad), 12 * X)
  np.testing.assert_allclose(twice(jax.jacrev, jax.grad), 12 * X)
  np.testing.assert_allclose(twice(jax.jacfwd, jax.jacfwd), 6 * X)
  np.testing.assert_allclose(twice(jax.jacrev, jax.jacfwd), 6 * X)


def test_mapped_reverse_is_by_the_reverse_pass():
  many = jnp.stack([X, X + 1, X + 2])
  want = 6 * many**2
  np.testing.assert_allclose(jax.vmap(jax.grad(total))(many), want)
  mapped = lambda many: jax.vmap(total)(many).sum()
  np.testing.assert_allclose(jax.grad(mapped)(many), want)
  # Of what is not mapped over, the cotangents are summed.
  shared = lambda x: jax.vmap(lambda k: cubed(x * k).sum())(jnp.ones(3)).sum()
  np.testing.assert_allclose(jax.grad(shared)(X), 18 * X**2)


def test_rematerialised_reverse_is_by_the_reverse_pass():
  np.testing.assert_allclose(jax.grad(jax.checkpoint(total))(X), 6 * X**2)


def test_only_what_is_asked_for_has_a_tangent():
  scale = lambda power, x, y: (x * y, (x, y))
  passes = transforms.Passes(
    run=lambda power, x, y: x * y,
    forward=scale,
    tangent=lambda power, kept, d: kept[0] * d[1] + kept[1] * d[0],
    backward=lambda power, kept, d: (kept[1] * d, kept[0] * d),
  )
  product = lambda x, y: transforms.call(passes, (1,), x, y).sum()
  np.testing.assert_allclose(jax.grad(product, 1)(X, X + 1), X)
  _, slope = jax.jvp(lambda y: product(X, y), (X + 1,), (jnp.ones_like(X),))
  np.testing.assert_allclose(slope, X.sum())
