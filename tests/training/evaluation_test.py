"""Evaluation, against sums over all examples in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import sharding
from recurrent.data import EvalBatches
from recurrent.metrics import Mean
from recurrent.training import evaluation, step

RNG = np.random.default_rng(0)
EXAMPLES = [
  {"inputs": RNG.normal(size=(n, 2)).astype(np.float32)}
  for n in RNG.integers(0, 9, 23)
]
NEVER = lambda: False


class Sums(nnx.Module):
  """Sums the inputs of each row, times a weight."""

  def __init__(self):
    self.scale = nnx.Param(jnp.float32(2))

  def __call__(self, batch):
    kept = jnp.where(batch["mask"][..., None], batch["inputs"], 0)
    return self.scale[...] * kept.sum(axis=(1, 2))


def measure(model, batch, key):
  assert key is None
  return {"sum": Mean.of(model(batch), batch["weights"])}


def evaluator(mesh_size=None, **options):
  graphdef, params = nnx.split(Sums())
  mesh = sharding.make_mesh(mesh_size)
  loss = step.loss_of(measure, "sum")
  made = evaluation.make_evaluator(graphdef, loss, mesh, **options)
  return lambda batches, stop=NEVER: made(params, batches, stop)


def check(evaluate):
  sums = [
    2 * example["inputs"].astype(np.float64).sum() for example in EXAMPLES
  ]
  for size, buckets in [(4, 3), (5, 1), (64, 2)]:
    scores = evaluate(EvalBatches(EXAMPLES, size, buckets=buckets))
    assert scores.means["sum"] == pytest.approx(np.mean(sums), rel=1e-5)
    np.testing.assert_allclose(
      np.array(scores.predictions["sums"]), sums, rtol=1e-5, atol=1e-5
    )


def predict(model, batch):
  return {"sums": model(batch)}


def test_every_example_counts_once_and_predictions_are_in_their_order():
  check(evaluator(predict=predict))


@pytest.mark.several_devices
def test_it_does_so_where_the_devices_do_not_divide_a_batch():
  check(evaluator(predict=predict))


@pytest.mark.several_devices
def test_a_batch_that_cannot_be_padded_is_refused():
  with pytest.raises(ValueError, match="5 rows must have weights or a mask"):
    evaluator()([{"inputs": np.zeros((5, 3, 2), np.float32)}])


@pytest.mark.several_devices
def test_rows_that_are_added_have_no_predictions():
  rows = {
    "inputs": np.ones((5, 3, 2), np.float32),
    "mask": np.ones((5, 3), bool),
  }
  rows["weights"] = np.ones(5, np.float32)
  found = evaluator(predict=predict)([rows, rows]).predictions["sums"]
  np.testing.assert_array_equal(found, np.full(10, 12))


def test_without_an_index_predictions_are_in_the_order_of_the_rows():
  batches = [
    {
      "inputs": np.full((3, 1, 1), n, np.float32),
      "mask": np.ones((3, 1), bool),
      "weights": np.ones(3, np.float32),
    }
    for n in range(9)
  ]
  found = evaluator(predict=predict)(batches).predictions["sums"]
  np.testing.assert_array_equal(found, 2 * np.repeat(np.arange(9), 3))


def test_the_carry_goes_from_batch_to_batch():
  def loss(model, carry, batch, key):
    carry = carry + batch["inputs"].sum(axis=(1, 2))
    return carry.sum(), (carry, {"seen": Mean.of(carry)})

  graphdef, params = nnx.split(Sums())
  evaluate = evaluation.make_evaluator(
    graphdef,
    loss,
    sharding.make_mesh(1),
    make_carry=lambda model, rows: jnp.full((rows,), 10.0),
  )
  batches = [{"inputs": np.ones((2, 1, 1), np.float32)}] * 3
  scores = evaluate(params, batches, NEVER)
  assert scores.means == {"seen": (11 + 12 + 13) / 3}
  assert scores.predictions == {}


def test_an_interruption_has_no_scores():
  asked = iter([False, False, True])
  batches = EvalBatches(EXAMPLES, 4)
  assert evaluator()(batches, lambda: next(asked)) is None
