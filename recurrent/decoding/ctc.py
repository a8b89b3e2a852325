"""Decoding of connectionist temporal classification (CTC), on the device.

A network gives logits of V symbols at each time step, one of which is the
blank. An alignment chooses a symbol at every time step. Its labelling is what
is left when repeated symbols are merged and blanks are removed, and the
probability of a labelling is the sum over all its alignments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import rows as rows_lib
from recurrent.decoding.beam import NEVER, Beams
from recurrent.decoding.sampling import Step
from recurrent.masking import hold
from recurrent.types import Array, Carry, Float, Int, Mask


class LanguageModel(NamedTuple):
  """A language model that takes part in a search (shallow fusion).

  Attributes:
    step: `(carry, token [rows]) -> (carry, logits [rows, V])` over the symbols
      of the search. The logit of the blank has no effect.
    carry: the carry before the first symbol, [batch, ...].
    logits: [batch, V] of the first symbol.
    weight: factor of its log-probabilities.
  """

  step: Step
  carry: Carry
  logits: Float[Array, "B V"]
  weight: float


def greedy(
  logits: Float[Array, "B T V"], mask: Mask | None = None, *, blank: int = 0
) -> Beams:
  """Finds the labelling of the most likely alignment of each row.

  Args:
    logits: [batch, time, V].
    mask: [batch, time], True where a time step is real; padding must be at the
      end.
    blank: the symbol that stands for no label.

  Returns:
    One labelling a row, as from `beam_search`. Its log-probability and its
    score are those of that one alignment.
  """
  nats = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  symbols = nats.argmax(axis=-1).astype(jnp.int32)
  best = nats.max(axis=-1)
  before = jnp.pad(symbols, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
  kept = (symbols != blank) & (symbols != before)
  if mask is not None:
    kept &= mask
    best = jnp.where(mask, best, jnp.zeros_like(best))
  # Labels move to the front; what is left out goes one place beyond the end.
  time = symbols.shape[1]
  places = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, time)
  rows = jnp.arange(len(symbols))[:, None]
  tokens = jnp.full((len(symbols), time + 1), blank, jnp.int32)
  tokens = tokens.at[rows, places].set(symbols)[:, None, :time]
  total = best.sum(axis=1, keepdims=True)
  lengths = kept.sum(axis=1, keepdims=True).astype(jnp.int32)
  return Beams(tokens, lengths, total, total)


class _Prefixes(NamedTuple):
  """The prefixes that the search follows; each leaf is [batch, beams, ...].

  Attributes:
    tokens: filled with blanks.
    lengths: number of labels.
    blank: log-probability of all alignments that end in a blank.
    label: log-probability of all alignments that end in the last label.
    prior: what the language model and the length add to the score.
    following: what each next label would add, [batch, beams, V].
    carry: of the language model, [batch * beams, ...].
  """

  tokens: Int[Array, "B K N"]
  lengths: Int[Array, "B K"]
  blank: Float[Array, "B K"]
  label: Float[Array, "B K"]
  prior: Float[Array, "B K"]
  following: Float[Array, "B K V"]
  carry: Carry


def beam_search(
  logits: Float[Array, "B T V"],
  mask: Mask | None = None,
  *,
  beams: int = 8,
  num_tokens: int | None = None,
  blank: int = 0,
  language_model: LanguageModel | None = None,
  length_bonus: float = 0.0,
) -> Beams:
  """Finds labellings of high probability by prefix-beam search.

  The score of a labelling is

    log p(labelling | logits) + weight * log p_lm(labelling) + bonus * length

  where the first term sums over all alignments whose prefixes the beams hold.
  It is exact if the beams hold every prefix.

  Args:
    logits: [batch, time, V].
    mask: [batch, time], True where a time step is real; padding must be at the
      end.
    beams: number K of prefixes that are followed.
    num_tokens: greatest number N of labels; None: that of the time steps.
    blank: the symbol that stands for no label.
    language_model: takes part in the scores; None: there is none.
    length_bonus: added to the score for each label.

  Returns:
    The K best labellings of each row. Tokens after the end are blanks, and
    `log_probabilities` are without language model and bonus.

  Raises:
    ValueError: if a number is out of range.

  Reference:
    Graves, "Supervised sequence labelling with recurrent neural networks",
    2012, section 7.5.3; Hannun et al., "First-pass large vocabulary continuous
    speech recognition using bi-directional recurrent DNNs", 2014.
  """
  batch, time, vocab_size = logits.shape
  num_tokens = time if num_tokens is None else num_tokens
  for name, value in (("beams", beams), ("num_tokens", num_tokens)):
    if value < 1:
      raise ValueError(f"{name} must be 1 or more, got {value}")
  if not 0 <= blank < vocab_size:
    raise ValueError(f"blank must be in [0, {vocab_size}), got {blank}")
  nats = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  mask = jnp.ones((batch, time), bool) if mask is None else mask
  ids = jnp.arange(vocab_size)[None, None]
  rows = jnp.arange(batch)[:, None]

  def worth(logits):
    """What each label adds to the score, [..., V]."""
    if language_model is None:
      return jnp.full(logits.shape, length_bonus)
    spoken = jnp.where(ids[0] == blank, NEVER, logits.astype(jnp.float32))
    spoken = jax.nn.log_softmax(spoken, axis=-1)
    return language_model.weight * spoken + length_bonus

  def follow(prefixes: _Prefixes, now) -> tuple[_Prefixes, None]:
    """Reads the symbols of one time step, [batch, V]."""
    nats, real = now
    each = jnp.broadcast_to(nats[:, None], (batch, beams, vocab_size))
    total = jnp.logaddexp(prefixes.blank, prefixes.label)
    live = total > NEVER / 2
    end = jnp.maximum(prefixes.lengths - 1, 0)[..., None]
    last = jnp.take_along_axis(prefixes.tokens, end, axis=2)
    last = jnp.where(prefixes.lengths[..., None] > 0, last, blank)
    # A prefix stays as it is by a blank or by its last label once more ...
    blank_stays = total + each[..., blank]
    again = jnp.take_along_axis(each, last, axis=2)[..., 0]
    label_stays = jnp.where(prefixes.lengths > 0, prefixes.label + again, NEVER)
    # ... and grows by another label, or by the same one after a blank.
    grown = each + jnp.where(
      ids == last, prefixes.blank[..., None], total[..., None]
    )
    may = (ids != blank) & (prefixes.lengths[..., None] < num_tokens)
    grown = jnp.where(may & live[..., None], grown, NEVER)
    # Where prefix i grows into prefix j, which is there already, j gets it all.
    short = prefixes.tokens.at[rows[..., None], _counts(beams), end].set(blank)
    parents = (prefixes.tokens[:, :, None] == short[:, None]).all(axis=-1)
    parents &= (live & (prefixes.lengths > 0))[:, None]
    to_last = jnp.broadcast_to(last[:, None, :, 0], (batch, beams, beams))
    into = jnp.take_along_axis(grown, to_last, axis=2)
    into = jnp.where(parents, into, NEVER).max(axis=1)
    label_stays = jnp.logaddexp(label_stays, into)
    there = (parents[..., None] & (to_last[..., None] == ids[None])).any(axis=2)
    grown = jnp.where(there, NEVER, grown)
    # The best of all that stay and all that grow.
    stays = jnp.logaddexp(blank_stays, label_stays) + prefixes.prior
    grows = grown + prefixes.prior[..., None] + prefixes.following
    scores = jnp.concatenate([stays, grows.reshape(batch, -1)], axis=1)
    _, place = jax.lax.top_k(scores, beams)
    grew = place >= beams
    flat = jnp.maximum(place - beams, 0)
    parent = jnp.where(grew, flat // vocab_size, place)
    token = jnp.where(grew, flat % vocab_size, blank).astype(jnp.int32)
    pick = lambda x: x[rows, parent]
    place_after = jnp.where(grew, pick(prefixes.lengths), num_tokens)
    tokens = jnp.pad(pick(prefixes.tokens), ((0, 0), (0, 0), (0, 1)))
    tokens = tokens.at[rows, _counts(beams)[..., 0], place_after].set(token)
    added = prefixes.following[rows, parent, token]
    following, carry = pick(prefixes.following), prefixes.carry
    if language_model is not None:
      old = jax.tree.map(
        lambda x: x[(rows * beams + parent).reshape(-1)], prefixes.carry
      )
      new, logits = language_model.step(old, token.reshape(-1))
      carry = hold(grew.reshape(-1), new, old)
      found = worth(logits).reshape(batch, beams, vocab_size)
      following = hold(grew, found, following)
    after = _Prefixes(
      tokens[..., :num_tokens],
      pick(prefixes.lengths) + grew.astype(jnp.int32),
      jnp.where(grew, NEVER, pick(blank_stays)),
      jnp.where(grew, grown[rows, parent, token], pick(label_stays)),
      pick(prefixes.prior) + jnp.where(grew, added, 0.0),
      following,
      carry,
    )
    # Each leaf begins with the batch, or with the batch times the beams.
    spread = lambda x: real if len(x) == batch else jnp.repeat(real, beams)
    held = lambda new, old: hold(spread(new), new, old)
    return jax.tree.map(held, after, prefixes), None

  first = jnp.zeros((batch, vocab_size))
  carry: Carry = ()
  if language_model is not None:
    first = language_model.logits
    carry = jax.tree.map(
      lambda x: jnp.repeat(x, beams, axis=0), language_model.carry
    )
  none = jnp.full((batch, beams), NEVER)
  begin = _Prefixes(
    tokens=jnp.full((batch, beams, num_tokens), blank, jnp.int32),
    lengths=jnp.zeros((batch, beams), jnp.int32),
    # Only one of the empty prefixes is live.
    blank=none.at[:, 0].set(0.0),
    label=none,
    prior=jnp.zeros((batch, beams)),
    following=jnp.repeat(worth(first)[:, None], beams, axis=1),
    carry=carry,
  )
  steps = nats.swapaxes(0, 1), mask.T
  end, _ = jax.lax.scan(follow, *rows_lib.vary_alike((begin, steps)))
  total = jnp.logaddexp(end.blank, end.label)
  scores = jnp.where(total > NEVER / 2, total + end.prior, NEVER)
  scores, order = jax.lax.top_k(scores, beams)
  pick = lambda x: x[rows, order]
  return Beams(pick(end.tokens), pick(end.lengths), scores, pick(total))


def _counts(beams: int) -> Int[Array, "1 K 1"]:
  """The number of each beam, to index [batch, beams, ...]."""
  return jnp.arange(beams)[None, :, None]
