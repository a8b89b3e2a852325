"""All layers check masks, resets and carries alike."""

import jax
import numpy as np
import pytest
from flax import nnx

import recurrent
from recurrent import cells, nn

FEATURES = 4
INPUTS = np.ones((2, 3, FEATURES), np.float32)
CELL = cells.LSTM(FEATURES)


def functional(run):
  return lambda carry, inputs, **flags: run(
    CELL, CELL.init(jax.random.key(0), FEATURES), carry, inputs, **flags
  )


RNGS = nnx.Rngs(0)
SIZE = {"heads": 2, "rngs": RNGS}
CARRIED = {
  "unroll": functional(recurrent.unroll),
  "newton": functional(recurrent.newton),
  "trace": functional(recurrent.trace),
  "Recurrent": nn.Recurrent(CELL, FEATURES, rngs=RNGS),
  "TransformerBlock": nn.TransformerBlock(FEATURES, context=2, **SIZE),
}
SELF_ATTENTION = nn.SelfAttention(FEATURES, **SIZE)
LAYERS = {
  **CARRIED,
  "Bidirectional": nn.Bidirectional(CELL, FEATURES, rngs=RNGS),
  "Stack": nn.Stack([nn.Recurrent(CELL, FEATURES, rngs=RNGS)]),
  "TransformerEncoderBlock": nn.TransformerEncoderBlock(FEATURES, **SIZE),
  "SelfAttention": lambda carry, *args, **flags: SELF_ATTENTION(*args, **flags),
}


@pytest.mark.parametrize("flag", ["mask", "resets"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_refuses_wrong_flags_in_the_same_words(name, flag):
  if (name, flag) == ("Stack", "mask"):
    pytest.skip("Stack applies the mask to its inputs before any layer does")
  for wrong, words in [
    (np.ones((3, 2), bool), r"\[batch, time\] = \(2, 3\), got \(3, 2\); trans"),
    (np.ones((2, 3), np.int32), "Boolean, got int32"),
  ]:
    with pytest.raises(ValueError, match=f"^{flag} must be {words}"):
      LAYERS[name](None, INPUTS, **{flag: wrong})


@pytest.mark.parametrize("name", CARRIED)
def test_every_layer_refuses_a_carry_of_another_class(name):
  layer = LAYERS[name]
  carry = (np.zeros((2, FEATURES), np.float32),) * 2
  if name == "TransformerBlock":
    carry = tuple(layer.initial_carry(2))
  with pytest.raises(ValueError, match=r"^carry must be \w+Carry\(.* got \("):
    layer(carry, INPUTS)
