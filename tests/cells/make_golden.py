"""Writes golden files: results of `torch.nn` on random arrays.

Run with torch==2.13.0 (a CPU build will do) from the root of the repository:

  python tests/cells/make_golden.py

It writes `golden/KIND.npz`. Every kind runs in both directions over rows of
different lengths, so that the golden files test masks and `reverse` too.
"""

import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"
# Number of gates, and number of arrays in the carry.
KINDS = {"rnn_tanh": (1, 1), "rnn_relu": (1, 1), "lstm": (4, 2), "gru": (3, 1)}
DIRECTIONS = {"": False, "_reverse": True}


def run(kind, *, batch, time, in_features, features, seed, dtype):
  """Runs one of torch's layers forward and backward.

  Args:
    kind: a key of `KINDS`.
    batch: rows; the first is of full length, the last has one time step.
    time: time steps.
    in_features: width of the inputs.
    features: width of one direction.
    seed: seed of all random arrays.
    dtype: "float32" or "float64".

  Returns:
    A dict of NumPy arrays: the arguments; `outputs` [batch, time, 2*features]
    and `last_K` [2, batch, features] for part K of the carry; and for each
    argument X `d_X`, the gradient of the sum of all results, each multiplied by
    its `weight_RESULT`. Parameters have torch's names.
  """
  import torch

  gates, parts = KINDS[kind]
  random = np.random.default_rng(seed)
  normal = lambda *shape: random.normal(size=shape).astype(dtype)
  given = {"inputs": normal(batch, time, in_features)}
  for part in range(parts):
    given[f"first_{part}"] = 0.5 * normal(2, batch, features)
  for direction in DIRECTIONS:
    for name, shape in (
      ("weight_ih_l0", (gates * features, in_features)),
      ("weight_hh_l0", (gates * features, features)),
      ("bias_ih_l0", (gates * features,)),
      ("bias_hh_l0", (gates * features,)),
    ):
      given[name + direction] = normal(*shape) / features**0.5
  lengths = random.integers(1, time, size=batch, endpoint=True)
  lengths[0], lengths[-1] = time, 1

  layer, options = {
    "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
  }[kind]
  layer = layer(
    in_features, features, batch_first=True, bidirectional=True, **options
  ).to(getattr(torch, dtype))
  tensors = {
    name: torch.tensor(given[name], requires_grad=True)
    for name in given
    if "_l0" not in name
  }
  for name, parameter in layer.named_parameters():
    parameter.data = torch.tensor(given[name])
    tensors[name] = parameter
  carry = tuple(tensors[f"first_{part}"] for part in range(parts))
  packed, last = layer(
    torch.nn.utils.rnn.pack_padded_sequence(
      tensors["inputs"],
      torch.tensor(lengths),
      batch_first=True,
      enforce_sorted=False,
    ),
    carry if parts > 1 else carry[0],
  )
  outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
    packed, batch_first=True, total_length=time
  )
  last = last if parts > 1 else (last,)
  results = {"outputs": outputs}
  results |= {f"last_{part}": value for part, value in enumerate(last)}
  weights = {
    f"weight_{name}": normal(*value.shape) for name, value in results.items()
  }
  sum(
    (value * torch.tensor(weights[f"weight_{name}"])).sum()
    for name, value in results.items()
  ).backward()
  return {
    **given,
    **weights,
    "lengths": lengths,
    **{name: value.detach().numpy() for name, value in results.items()},
    **{f"d_{name}": value.grad.numpy() for name, value in tensors.items()},
  }


def main():
  """Writes the golden files."""
  import torch

  GOLDEN.mkdir(exist_ok=True)
  for seed, kind in enumerate(KINDS):
    arrays = run(
      kind,
      batch=4,
      time=6,
      in_features=3,
      features=5,
      seed=seed,
      dtype="float64",
    )
    np.savez_compressed(
      GOLDEN / f"{kind}.npz",
      torch_version=torch.__version__,
      numpy_version=np.__version__,
      **arrays,
    )


if __name__ == "__main__":
  main()
