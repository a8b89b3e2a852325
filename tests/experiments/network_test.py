"""The networks that the flags describe."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import config as config_lib
from experiments import network
from recurrent import cells, nn
from recurrent.errors import ConfigError


def parse(*flags):
  argv = ["program", "--workdir=x", "--features=8", *flags]
  return config_lib.parse(network.NetworkConfig, argv)


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, inputs):
  return nnx.merge(graphdef, params)(None, inputs)[1]


def slopes(config, causal):
  """Whether output t depends on input s, [T, T], from finite differences."""
  stack = network.make_stack(config, 3, causal=causal, rngs=nnx.Rngs(0))
  inputs = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  batch = np.repeat(inputs[None], 7, axis=0)
  for s in range(6):
    batch[s, s] += 1
  outputs = run(*nnx.split(stack), jnp.asarray(batch))
  assert stack.in_features == 3
  assert outputs.shape == (7, 6, stack.features)
  return np.any(outputs[:6] != outputs[6:], axis=-1).T


@pytest.mark.parametrize("cell", ["gru", "transformer", "lru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_see_the_past_or_both_sides(cell, layers):
  flags = [f"--cell={cell}", f"--layers={layers}"]
  if cell == "transformer":
    flags += ["--heads=2", "--context=6"]
  config = parse(*flags)
  past = np.tril(np.ones((6, 6), bool))
  np.testing.assert_array_equal(slopes(config, causal=True), past)
  assert slopes(config, causal=False).all()


def test_the_context_of_a_transformer_is_a_flag():
  config = parse("--cell=transformer", "--heads=2", "--context=2")
  near = np.tril(np.ones((6, 6), bool)) & ~np.tril(np.ones((6, 6), bool), -2)
  np.testing.assert_array_equal(slopes(config, causal=True), near)


@pytest.mark.parametrize(
  ("text", "structure"),
  [
    ("dense", cells.Dense()),
    ("heads:4", cells.Heads(4)),
    ("diagonal", cells.Diagonal()),
    ("low_rank:2", cells.LowRank(2)),
  ],
)
def test_the_structure_is_a_flag(text, structure):
  for cell in ("lstm", "lstm_peephole", "gru", "mgu", "slstm"):
    made = network.make_cell(parse(f"--structure={text}", f"--cell={cell}"))
    assert made.structure == structure


def test_without_the_flag_a_cell_keeps_its_structure():
  made = network.make_cell(parse("--cell=indrnn"))
  assert isinstance(made.structure, cells.Diagonal)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--structure=heads:3"], "--cell=lstm: .*heads"),
    (["--structure=heads"], "heads:N, diagonal or low_rank:R"),
    (["--structure=diagonal:4"], "got 'diagonal:4'"),
    (["--structure=round"], "got 'round'"),
    (["--cell=lru", "--structure=diagonal"], "no choice of a --structure"),
    (["--heads=2"], "--heads does nothing with --cell=lstm"),
    (["--cell=transformer", "--zoneout=0.1"], "--zoneout does nothing"),
    (["--cell=transformer", "--method=scan"], "--method does nothing"),
    (["--cell=transformer", "--heads=3"], "no even multiple of --heads=3"),
    (["--cell=gru_d"], "--cell=gru_d is unknown"),
  ],
  ids=str,
)
def test_what_does_not_fit_is_refused(flags, words):
  with pytest.raises(ConfigError, match=words) as error:
    parse(*flags)
  assert len(str(error.value)) < 1000


def test_smoke_holds_for_a_configuration_built_in_python():
  @dataclasses.dataclass(frozen=True)
  class Config(network.NetworkConfig):
    steps: int = 5000

  small = Config(smoke=True)
  assert (small.steps, small.features, small.batch_size) == (4, 16, 8)
  # What is given counts, even where it is the default.
  assert Config(steps=7, smoke=True).steps == 7
  assert Config(smoke=True, steps=5000).steps == 5000
  flags = ["", "--workdir=x", "--smoke", "--steps=5000"]
  assert config_lib.parse(Config, flags).steps == 5000
  assert dataclasses.replace(small, smoke=False).steps == 4
  assert Config().steps == 5000


def test_layers_of_one_direction_or_two_are_as_wide_as_asked():
  config = parse("--layers=2", "--residual", "--dropout=0.3")
  one = network.make_stack(config, 8, rngs=nnx.Rngs(0))
  two = network.make_stack(config, 8, causal=False, rngs=nnx.Rngs(0))
  assert isinstance(two.layers[0], nn.Bidirectional)
  assert (one.features, two.features) == (8, 16)
  assert (one.residual, one.dropout) == (True, 0.3)


@pytest.mark.parametrize("cell", ["gru", "transformer"])
def test_a_gru_d_is_the_first_layer_where_gaps_are_read(cell):
  flags = ["--layers=2", *(["--heads=2"] if cell == "transformer" else [])]
  config = parse(f"--cell={cell}", *flags)
  stack = network.make_stack(config, 3, observed=True, rngs=nnx.Rngs(0))
  assert stack.in_features == 3
  assert isinstance(stack.layers[0].cell, cells.GRUD)
  ones = jnp.ones((2, 5, 3))
  inputs = cells.Observations(ones, ones > 0, ones)
  assert stack(None, inputs)[1].shape == (2, 5, 8)


def test_mlps_make_a_stack_of_linear_cells_nonlinear():
  inputs = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
  for flags, layers in ([], 2), (["--mlp_features=16"], 4):
    config = parse("--cell=lru", "--layers=2", *flags)
    stack = network.make_stack(config, 3, rngs=nnx.Rngs(0))
    outputs = run(*nnx.split(stack), jnp.asarray(inputs))
    doubled = run(*nnx.split(stack), jnp.asarray(2 * inputs))
    assert len(stack.layers) == layers
    linear = np.allclose(doubled, 2 * outputs, rtol=1e-4, atol=1e-5)
    assert linear == (not flags)


def test_mlps_are_added_to_their_inputs_once():
  inputs = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
  for flags in [], ["--residual"]:
    config = parse("--cell=lru", "--mlp_features=16", *flags)
    stack = network.make_stack(config, 8, rngs=nnx.Rngs(0))
    plain = network.make_stack(parse("--cell=lru", *flags), 8, rngs=nnx.Rngs(0))
    mlp = getattr(stack.layers[1], "layer", stack.layers[1])
    mlp.output.kernel[...] *= 0
    outputs, wanted = (
      run(*nnx.split(x), jnp.asarray(inputs)) for x in (stack, plain)
    )
    np.testing.assert_allclose(outputs, wanted, rtol=1e-6)


@pytest.mark.parametrize("cell", ["lru", "rg_lru", "lstm", "gru"])
def test_t_max_lengthens_the_memory_of_a_new_network(cell):
  reach = []
  for flags in [], ["--t_max=2000"]:
    config = parse(f"--cell={cell}", *flags)
    stack = network.make_stack(config, 3, rngs=nnx.Rngs(0))
    inputs = np.zeros((2, 300, 3), np.float32)
    inputs[0, 0] = 1
    outputs = run(*nnx.split(stack), jnp.asarray(inputs))
    change = np.abs(outputs[0] - outputs[1]).max(axis=-1)
    reach.append(change[-1] / change[0])
  assert reach[1] > max(0.01, 5 * reach[0])
