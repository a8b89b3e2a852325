"""Converters against the libraries themselves, where they are installed.

Flax always is. `pip install dm-haiku keras torch==2.13.0` for the others. The
same weights must give the same outputs to 1e-5 and the same gradients to 1e-4,
in float32.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import rnn

from recurrent import converters, nn, unroll
from recurrent.cells import GRU, LSTM, RNN, GRUResetBefore, LSTMCarry
from recurrent.cells.lstm_variants import LSTMVariant
from tests.cells.cases import assert_close

B, T, D, H = 3, 7, 5, 4
CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
KINDS = tuple(CELLS)


def drawn(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(tree, seed=1):
  """The same tree of arrays, none of them zero."""
  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten(
    [0.5 * drawn(*np.shape(x), seed=seed + k) for k, x in enumerate(leaves)]
  )


def ours(cell, params, inputs, weights, **how):
  """Outputs, and the gradients by parameters and inputs of a weighted sum."""

  def loss(params, inputs):
    outputs = unroll(cell, params, None, inputs, **how)[1]
    return jnp.sum(outputs * weights), outputs

  params = jax.tree.map(jnp.asarray, params)
  gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    params, jnp.asarray(inputs)
  )
  return outputs, gradients


# There and back.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "library", ["torch", "cudnn", "keras", "flax", "nnx", "haiku"]
)
def test_there_and_back_is_where_one_was(library, kind):
  params = filled(CELLS[kind](H).init(jax.random.key(0), D))
  if library == "torch":
    (back,) = converters.from_torch(converters.to_torch([[params]]), kind)[0]
  elif library == "cudnn":
    flat = converters.to_cudnn([[params]])
    (back,) = converters.from_cudnn(flat, kind, in_features=D, features=H)[0]
  elif library == "keras":
    back = converters.from_keras(converters.to_keras(params), kind)
  elif library == "flax":
    back = converters.from_flax(converters.to_flax(params), kind)
  else:
    if kind == "gru":  # has one bias only
      params = params._replace(recurrent_bias=0 * params.recurrent_bias)
    if library == "nnx":
      back = converters.from_nnx(converters.to_nnx(params), kind)
    else:
      back = converters.from_haiku(converters.to_haiku(params), kind)
  assert type(back) is type(params)
  assert_close(back, params, 1e-6)


# What arrays they take.


FROM = {  # a function of arrays by name, and names that it takes for an RNN
  "torch": (
    lambda arrays: converters.from_torch(arrays, "rnn")[0][0],
    {
      "weight_ih_l0": (H, D),
      "weight_hh_l0": (H, H),
      "bias_ih_l0": (H,),
      "bias_hh_l0": (H,),
    },
  ),
  "keras": (
    lambda arrays: converters.from_keras([*arrays.values()], "rnn"),
    {"kernel": (D, H), "recurrent_kernel": (H, H), "bias": (H,)},
  ),
  "flax": (
    lambda arrays: converters.from_flax(arrays, "rnn"),
    {"i/kernel": (D, H), "h/kernel": (H, H), "i/bias": (H,)},
  ),
  "nnx": (
    lambda arrays: converters.from_nnx(arrays, "rnn"),
    {"dense_i/kernel": (D, H), "dense_h/kernel": (H, H), "dense_i/bias": (H,)},
  ),
  "haiku": (
    lambda arrays: converters.from_haiku(arrays, "rnn"),
    {
      "linear/w": (D, H),
      "linear_1/w": (H, H),
      "linear/b": (H,),
      "linear_1/b": (H,),
    },
  ),
}
every_library = pytest.mark.parametrize("library", FROM)


def arrays_for(library, dtype=np.float32):
  """The converter and arrays for it."""
  convert, shapes = FROM[library]
  arrays = {
    name: drawn(*shape, seed=seed).astype(dtype)
    for seed, (name, shape) in enumerate(shapes.items())
  }
  return convert, arrays


@every_library
def test_arrays_that_change_later_change_no_parameters(library):
  convert, arrays = arrays_for(library)
  params = convert(arrays)
  before = jax.tree.map(np.array, params)
  for array in arrays.values():
    array += 1
  jax.tree.map(np.testing.assert_array_equal, params, before)


def test_cudnns_vector_can_change_later_too():
  flat = drawn(4 * H * (D + H + 2))
  sizes = {"in_features": D, "features": H}
  ((params,),) = converters.from_cudnn(flat, "lstm", **sizes)
  before = jax.tree.map(np.array, params)
  flat += 1
  jax.tree.map(np.testing.assert_array_equal, params, before)


@every_library
def test_float64_stays_where_jax_has_it(library, x64):
  convert, arrays = arrays_for(library, np.float64)
  wide = convert(arrays)
  assert {x.dtype for x in wide} == {np.dtype(np.float64)}
  # One wide array makes all wide, so that they go together.
  name = next(iter(arrays))
  narrow = {k: v.astype(np.float32) for k, v in arrays.items() if k != name}
  mixed = convert({name: arrays[name], **narrow})
  assert {x.dtype for x in mixed} == {np.dtype(np.float64)}


@every_library
def test_float64_is_not_rounded_in_silence(library):
  convert, arrays = arrays_for(library, np.float64)
  with pytest.warns(UserWarning, match="jax_enable_x64") as warned:
    params = convert(arrays)
  assert {x.dtype for x in params} == {np.dtype(np.float32)}
  assert warned[0].filename == __file__


@every_library
@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_narrow_floats_become_float32(library, dtype):
  convert, arrays = arrays_for(library, dtype)
  params = convert(arrays)
  assert {x.dtype for x in params} == {np.dtype(np.float32)}
  same = convert({k: v.astype(np.float32) for k, v in arrays.items()})
  jax.tree.map(np.testing.assert_array_equal, params, same)


@every_library
def test_what_is_no_floating_point_is_refused(library):
  convert, arrays = arrays_for(library, np.int32)
  with pytest.raises(ValueError, match="must be floating-point, got int32"):
    convert(arrays)


# torch's modules, without torch.


class Tensor:
  """What a torch tensor does: in bfloat16 it is no NumPy array."""

  def __init__(self, array, name="float32", parameter=True):
    self._array, self.dtype, self._parameter = array, f"torch.{name}", parameter

  def detach(self):
    return Tensor(self._array, self.dtype[6:], False)

  def cpu(self):
    return self

  def float(self):
    return Tensor(self._array.astype(np.float32), "float32", self._parameter)

  def __array__(self, dtype=None, copy=None):
    if self._parameter or self.dtype == "torch.bfloat16":
      raise TypeError("no NumPy array")
    return np.asarray(self._array, dtype)


class Module:
  """What a torch module does, as far as a converter needs it."""

  def __init__(self, arrays, mode=None, **parts):
    self._arrays = arrays
    self.__dict__.update(parts)
    if mode:
      self.mode = mode

  def state_dict(self):
    return self._arrays


def torch_arrays(kind, layers=2, directions=2):
  cell = CELLS[kind](H)
  widths = [D] + [directions * H] * (layers - 1)
  return converters.to_torch(
    [
      [
        filled(cell.init(jax.random.key(0), width), seed=10 * layer + k)
        for k in range(directions)
      ]
      for layer, width in enumerate(widths)
    ]
  )


@pytest.mark.parametrize(
  ("mode", "kind"),
  [("RNN_TANH", "rnn"), ("RNN_RELU", "rnn"), ("LSTM", "lstm"), ("GRU", "gru")],
)
def test_a_module_says_its_kind_itself(mode, kind):
  arrays = torch_arrays(kind)
  module = Module(arrays, mode)
  want = converters.from_torch(arrays, kind)
  jax.tree.map(
    np.testing.assert_array_equal, converters.from_torch(module), want
  )
  model = Module({f"encoder.rnn.{k}": v for k, v in arrays.items()})
  model.encoder = Module({}, rnn=module)
  jax.tree.map(
    np.testing.assert_array_equal,
    converters.from_torch(model, prefix="encoder.rnn."),
    want,
  )
  other = "gru" if kind == "lstm" else "lstm"
  with pytest.raises(ValueError, match=f"kind must be '{kind}', the module's"):
    converters.from_torch(module, other)


@pytest.mark.parametrize("source", [{}, Module({})])
def test_a_kind_that_nobody_gives_is_asked_for(source):
  with pytest.raises(ValueError, match="kind must be given"):
    converters.from_torch(source)


def test_a_prefix_picks_one_module_of_a_larger_state():
  arrays = torch_arrays("lstm")
  state = {f"encoder.rnn.{k}": v for k, v in arrays.items()}
  state |= {"head.weight": drawn(3, 3), "decoder.weight_ih_l0": drawn(3, 3)}
  found = converters.from_torch(state, "lstm", prefix="encoder.rnn.")
  want = converters.from_torch(arrays, "lstm")
  jax.tree.map(np.testing.assert_array_equal, found, want)
  for wrong in ("", "encoder."):
    with pytest.raises(
      ValueError, match=r"one of \['encoder.rnn.', 'decoder.'\], got"
    ):
      converters.from_torch(state, "lstm", prefix=wrong)


def test_tensors_in_bfloat16_and_with_gradients_are_taken():
  arrays = {
    name: np.asarray(jnp.asarray(value, jnp.bfloat16))
    for name, value in torch_arrays("gru").items()
  }
  found = converters.from_torch(
    {name: Tensor(value, "bfloat16") for name, value in arrays.items()}, "gru"
  )
  want = converters.from_torch(arrays, "gru")
  jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_two_directions_load_into_a_stack(kind):
  cell = CELLS[kind](H)
  params = converters.from_torch(torch_arrays(kind), kind)
  stack = nn.Stack(
    [nn.Bidirectional(cell, width, rngs=nnx.Rngs(0)) for width in (D, 2 * H)]
  )
  stack.load(params)
  inputs = want = jnp.asarray(drawn(B, T, D))
  for layer in params:
    halves = [
      unroll(cell, p, None, want, reverse=bool(k))[1]
      for k, p in enumerate(layer)
    ]
    want = jnp.concatenate(halves, axis=-1)
  assert_close(stack(None, inputs)[1], want, 1e-6)


# Flax.


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("rnn", "SimpleCell"),
    ("lstm", "LSTMCell"),
    ("lstm", "OptimizedLSTMCell"),
    ("gru", "GRUCell"),
  ],
)
def test_flax_linen_has_the_same_values_and_gradients(kind, name):
  linen = pytest.importorskip("flax.linen")
  module = linen.RNN(getattr(linen, name)(H))
  inputs, weights = drawn(B, T, D), drawn(B, T, H, seed=2)
  params = filled(module.init(jax.random.key(0), inputs)["params"])

  def loss(params, inputs):
    outputs = module.apply({"params": params}, inputs)
    return jnp.sum(outputs * weights), outputs

  (d_params, d_inputs), want = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    params, inputs
  )
  convert = lambda tree: converters.from_flax(tree["cell"], kind)
  outputs, gradients = ours(CELLS[kind](H), convert(params), inputs, weights)
  assert_close(outputs, want, 1e-5)
  assert_close(gradients[1], d_inputs, 1e-4)
  assert_close(gradients[0], convert(d_params), 1e-4)
  assert_close(converters.to_flax(convert(params)), params["cell"], 1e-6)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("rnn", "SimpleCell"),
    ("lstm", "LSTMCell"),
    ("lstm", "OptimizedLSTMCell"),
    ("gru", "GRUCell"),
  ],
)
def test_flax_nnx_has_the_same_values_and_gradients(kind, name):
  module = nnx.RNN(getattr(nnx, name)(D, H, rngs=nnx.Rngs(0)))
  inputs, weights = drawn(B, T, D), drawn(B, T, H, seed=2)
  params = filled(nnx.to_pure_dict(nnx.state(module.cell, nnx.Param)))
  nnx.update(module.cell, params)
  graph, state, rest = nnx.split(module, nnx.Param, ...)
  start = module.cell.initialize_carry((B, D), nnx.Rngs(0))

  def loss(state, inputs):
    run = nnx.merge(graph, state, rest)
    outputs = run(inputs, initial_carry=start)
    return jnp.sum(outputs * weights), outputs

  (d_state, d_inputs), want = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    state, jnp.asarray(inputs)
  )
  convert = lambda state: converters.from_nnx(state["cell"], kind)
  outputs, gradients = ours(CELLS[kind](H), convert(state), inputs, weights)
  assert_close(outputs, want, 1e-5)
  assert_close(gradients[1], d_inputs, 1e-4)
  got = gradients[0]
  if kind == "gru":  # whose inner bias theirs is a constant zero
    got = got._replace(recurrent_bias=0 * got.recurrent_bias)
  assert_close(got, convert(d_state), 1e-4)
  # And back, into a cell that was drawn anew.
  back = converters.to_nnx(
    convert(state), optimized=name == "OptimizedLSTMCell"
  )
  again = nnx.RNN(getattr(nnx, name)(D, H, rngs=nnx.Rngs(1)))
  nnx.update(again.cell, back)
  assert_close(again(inputs), want, 1e-6)


def test_a_gru_with_an_inner_bias_does_not_fit_into_nnx():
  # google/flax#5594: nnx.GRUCell has none, though its docstring does.
  params = filled(GRU(H).init(jax.random.key(0), D))
  with pytest.raises(ValueError, match="recurrent_bias must be zero"):
    converters.to_nnx(params)
  with pytest.raises(ValueError, match="optimized needs LSTMParams, got GRU"):
    converters.to_nnx(params, optimized=True)


# Keras.


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gru_reset_before"])
def test_keras_has_the_same_values_and_gradients(kind, bias, backward):
  os.environ.setdefault("KERAS_BACKEND", "jax")
  keras = pytest.importorskip("keras")
  make = {"rnn": "SimpleRNN", "lstm": "LSTM"}.get(kind, "GRU")
  after = kind != "gru_reset_before"
  options = {"reset_after": after} if make == "GRU" else {}
  layer = getattr(keras.layers, make)(
    H,
    return_sequences=True,
    use_bias=bias,
    go_backwards=backward,
    **options,
  )
  inputs, weights = drawn(B, T, D), drawn(B, T, H, seed=2)
  layer.build(inputs.shape)
  layer.set_weights(filled(layer.get_weights()))
  variables = [v.value for v in layer.trainable_variables]
  others = [v.value for v in layer.non_trainable_variables]

  def loss(variables, inputs):
    outputs = layer.stateless_call(variables, others, inputs)[0]
    return jnp.sum(outputs * weights), outputs

  (d_variables, d_inputs), want = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    variables, inputs
  )
  if backward:  # Keras gives these in the order of their computation
    want, weights = want[:, ::-1], weights[:, ::-1]
  kind = kind.split("_")[0]
  cell = CELLS[kind](H) if after else GRUResetBefore(H)
  convert = lambda arrays: converters.from_keras(
    arrays, kind, reset_after=after
  )
  params = convert(layer.get_weights())
  outputs, gradients = ours(cell, params, inputs, weights, reverse=backward)
  assert_close(outputs, want, 1e-5)
  assert_close(gradients[1], d_inputs, 1e-4)
  assert_close(gradients[0].kernel, convert(d_variables).kernel, 1e-4)
  assert_close(gradients[0].recurrent, convert(d_variables).recurrent, 1e-4)
  if bias:
    if kind == "gru" and after:
      # Two biases that are only added, of z and r, have one gradient.
      got = np.array(converters.to_keras(gradients[0])[2])
      got[1, : 2 * H] = got[0, : 2 * H]
    elif kind == "gru":
      once = gradients[0]._replace(recurrent_bias=np.zeros(H, np.float32))
      got = converters.to_keras(once, reset_after=False)[2]
    else:
      got = gradients[0].bias
    assert_close(got, d_variables[2], 1e-4)
    back = converters.to_keras(params, reset_after=after)
    layer.set_weights(back)
    assert_close(layer(inputs)[:, :: -1 if backward else 1], want, 1e-5)


# Haiku.


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_haiku_has_the_same_values_and_gradients(kind):
  hk = pytest.importorskip("haiku")
  make = {"rnn": hk.VanillaRNN, "lstm": hk.LSTM, "gru": hk.GRU}[kind]

  def run(inputs):
    core = make(H)
    state = core.initial_state(B)
    return hk.dynamic_unroll(core, inputs, state, time_major=False)[0]

  module = hk.without_apply_rng(hk.transform(run))
  inputs, weights = drawn(B, T, D), drawn(B, T, H, seed=2)
  params = filled(module.init(jax.random.key(0), inputs))

  def flat(params):
    found = {}
    for path, arrays in params.items():
      last = path.rpartition("/")[2] + "/" if kind == "rnn" else ""
      found |= {f"{last}{name}": value for name, value in arrays.items()}
    return found

  def loss(params, inputs):
    outputs = module.apply(params, inputs)
    return jnp.sum(outputs * weights), outputs

  (d_params, d_inputs), want = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    params, inputs
  )
  cell = {
    "rnn": RNN(H, activation="relu"),
    "lstm": LSTM(H),
    "gru": GRUResetBefore(H),
  }[kind]
  ported = converters.from_haiku(flat(params), kind)
  outputs, gradients = ours(cell, ported, inputs, weights)
  assert_close(outputs, want, 1e-5)
  assert_close(gradients[1], d_inputs, 1e-4)
  d = gradients[0]
  if kind == "lstm":
    # The forget bias of Haiku is 1 less: its gradient is the same.
    d = d._replace(bias=d.bias.at[H : 2 * H].add(1))
  elif kind == "gru":  # its candidate has one bias
    d = d._replace(recurrent_bias=jnp.zeros(H))
  back = converters.to_haiku(d)
  if kind == "rnn":  # two biases that are only added
    back["linear_1/b"] = back["linear/b"]
  assert_close(back, flat(d_params), 1e-4)


# torch.


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(
  ("kind", "layers", "bidirectional", "bias", "projection"),
  [
    (kind, layers, bidirectional, bias, 0)
    for kind in KINDS
    for layers in (1, 2)
    for bidirectional in (False, True)
    for bias in (True, False)
  ]
  + [
    ("lstm", layers, two, bias, 3)
    for layers in (1, 2)
    for two in (False, True)
    for bias in (True, False)
  ],
)
def test_torch_has_the_same_values_and_gradients(
  kind, layers, bidirectional, bias, projection, lengths
):
  torch = pytest.importorskip("torch")
  options = {"proj_size": projection} if projection else {}
  module = getattr(torch.nn, kind.upper())(
    D,
    H,
    num_layers=layers,
    bidirectional=bidirectional,
    bias=bias,
    batch_first=True,
    **options,
  )
  state = filled({k: v.numpy() for k, v in module.state_dict().items()})
  module.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  width = (projection or H) * (1 + bidirectional)
  inputs, weights = drawn(B, T, D), drawn(B, T, width, seed=2)
  mask = np.ones((B, T), bool)
  theirs = torch.tensor(inputs, requires_grad=True)
  if lengths:
    mask = np.arange(T) < np.array([[T], [3], [1]])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
      theirs, mask.sum(1), batch_first=True
    )
    outputs = torch.nn.utils.rnn.pad_packed_sequence(
      module(packed)[0], batch_first=True
    )[0]
  else:
    outputs = module(theirs)[0]
  (outputs * torch.tensor(weights)).sum().backward()
  want_gradients = {k: v.grad.numpy() for k, v in module.named_parameters()}

  if projection:
    cell = LSTMVariant(projection, memory=H)
  else:
    cell = CELLS[kind](H)

  def run(params, inputs):
    for layer in params:
      halves = [
        unroll(cell, p, None, inputs, mask=jnp.asarray(mask), reverse=bool(k))[
          1
        ]
        for k, p in enumerate(layer)
      ]
      inputs = jnp.concatenate(halves, axis=-1)
    return jnp.sum(inputs * weights), inputs

  params = jax.tree.map(jnp.asarray, converters.from_torch(state, kind))
  (d_params, d_inputs), got = jax.grad(run, argnums=(0, 1), has_aux=True)(
    params, jnp.asarray(inputs)
  )
  assert_close(got, outputs.detach().numpy(), 1e-5)
  assert_close(d_inputs, theirs.grad.numpy(), 1e-4)
  converted = converters.to_torch(d_params)
  for name, want in want_gradients.items():
    got = converted[name]
    if name.startswith("bias_hh"):
      # Two biases that are only added have one gradient: all of them, but for
      # a GRU's candidate, whose second is inside the reset product.
      added = 2 * H if kind == "gru" else len(got)
      outer = converted[name.replace("hh", "ih")]
      got = np.concatenate([outer[:added], got[added:]])
    assert_close(got, want, 1e-4)
  back = converters.to_torch(params, bias=bias)
  assert set(back) == set(state)
  module.load_state_dict(
    {k: torch.tensor(np.array(v)) for k, v in back.items()}
  )
  again = module(theirs)[0] if not lengths else None
  if again is not None:
    assert_close(again.detach().numpy(), outputs.detach().numpy(), 1e-5)


# cuDNN.


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_cudnn_weights_mean_what_they_mean_to_jax(
  layers, bidirectional, lengths
):
  sizes = (D, H, layers, bidirectional)
  flat = 0.5 * drawn(rnn.get_num_params_in_lstm(*sizes))
  inputs = drawn(B, T, D, seed=1)
  pseudo_layers = layers * (1 + bidirectional)
  starts = 0.5 * drawn(2, pseudo_layers, B, H, seed=2)
  # Not zero: there their carry is that of the last padded time step.
  length = np.array([T, 3, 1] if lengths else [T] * B, np.int32)
  weights = drawn(B, T, H * (1 + bidirectional), seed=3)

  def theirs(flat, inputs):
    parts = rnn.unpack_lstm_weights(flat, *sizes)
    outputs, hidden, cell = rnn.lstm_ref(
      inputs, *starts, *parts, length, D, H, layers, 0.0, bidirectional
    )
    return jnp.sum(outputs * weights), (outputs, hidden, cell)

  def ours(params, inputs):
    mask = jnp.arange(T) < length[:, None]
    carries = []
    for k, layer in enumerate(params):
      halves = []
      for reverse, one in enumerate(layer):
        start = LSTMCarry(*starts[:, k * len(layer) + reverse])
        carry, half = unroll(
          LSTM(H), one, start, inputs, mask=mask, reverse=bool(reverse)
        )
        carries.append(carry)
        halves.append(half)
      inputs = jnp.concatenate(halves, axis=-1)
    hidden, cell = map(jnp.stack, zip(*carries, strict=True))
    return jnp.sum(inputs * weights), (inputs, hidden, cell)

  params = converters.from_cudnn(
    flat,
    "lstm",
    in_features=D,
    features=H,
    layers=layers,
    bidirectional=bidirectional,
  )
  params = jax.tree.map(jnp.asarray, params)
  both = lambda run, *args: jax.jit(
    jax.grad(run, argnums=(0, 1), has_aux=True)
  )(*args)
  (d_params, d_inputs), got = both(ours, params, jnp.asarray(inputs))
  (d_flat, d_want), want = both(theirs, jnp.asarray(flat), inputs)
  assert_close(got, want, 1e-5)
  assert_close(d_inputs, d_want, 1e-4)
  # Both biases have the gradient of their sum; ours is in the first.
  d_flat = converters.from_cudnn(
    d_flat,
    "lstm",
    in_features=D,
    features=H,
    layers=layers,
    bidirectional=bidirectional,
  )
  twice = lambda d: d._replace(bias=2 * d.bias)
  d_params = [[twice(d) for d in layer] for layer in d_params]
  assert_close(d_params, d_flat, 1e-4)


# What does not fit.


def state(**change):
  arrays = converters.to_torch([[LSTM(H).init(jax.random.key(0), D)]])
  arrays |= change
  return {k: v for k, v in arrays.items() if v is not None}


@pytest.mark.parametrize(
  ("arrays", "words"),
  [
    (state(weight_hh_l0=None), "weight_hh_l0 is missing"),
    (state(weight_hh_l0=drawn(16, 3)), r"weight_hh_l0 must be \(16, 4\)"),
    (state(weight_ih_l0=drawn(15, 5)), "weight_ih_l0 must have 4 x hidden"),
    (state(bias_hh_l0=drawn(3)), r"bias_hh_l0 must be \(16,\), got \(3,\)"),
    (state(bias_hh_l0=None), "bias_hh_l0 is missing"),
    (state(weight_ih_l2=drawn(16, 4)), "no use for .*weight_ih_l2"),
    ({}, "weight_ih_l0 is missing"),
  ],
)
def test_arrays_that_do_not_fit_are_named(arrays, words):
  with pytest.raises(ValueError, match=words):
    converters.from_torch(arrays, "lstm")


def test_other_mistakes_are_named_too():
  with pytest.raises(ValueError, match="kind must be one of"):
    converters.from_torch({}, "elman")
  with pytest.raises(ValueError, match=r"flat must be \(184,\)|flat must be"):
    converters.from_cudnn(drawn(3), "lstm", in_features=D, features=H)
  with pytest.raises(ValueError, match="2 or 3 arrays, got 1"):
    converters.from_keras([drawn(3)], "lstm")
  with pytest.raises(ValueError, match="h/kernel is missing"):
    converters.from_flax({}, "rnn")
  params = filled(LSTM(H).init(jax.random.key(0), D))
  with pytest.raises(ValueError, match="bias_l0 is not zero"):
    converters.to_torch([[params]], bias=False)
