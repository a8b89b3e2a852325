# ruff: noqa: E501
"""Breaks the library in known ways, one at a time: does a test notice?

  python -m tests.mutation [--only=SUBSTRING]

Each mutant is a copy of the tree with one line changed: a bias dropped, two
gates swapped, a mask or a reset forgotten, a shift by one. The tests of cells,
executors and kernels must fail on it. About ten minutes on 2 cores.
"""

import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]

# (file under recurrent/, what stands there once, what instead)
MUTANTS = [
  # Cells: a bias dropped, gates swapped, a sign, a term.
  ("cells/rnn.py", "base.affine(inputs, params.kernel, params.bias)", "base.product(inputs, params.kernel)"),
  ("cells/rnn.py", "projected + mixed, carry", "projected - mixed, carry"),
  ("cells/lstm.py", "base.affine(inputs, params.kernel, params.bias)", "base.product(inputs, params.kernel)"),
  ("cells/lstm.py", "i, f, g, o = base.split_gates", "f, i, g, o = base.split_gates"),
  ("cells/lstm.py", "i, f, g, o = base.split_gates", "i, f, o, g = base.split_gates"),
  ("cells/lstm.py", "jax.nn.sigmoid(o) * jnp.tanh(cell)", "jax.nn.sigmoid(o) * cell"),
  ("cells/lstm.py", ".set(self.forget_bias)", ".set(0.0)"),
  ("cells/gru.py", "base.add_bias(n, params.recurrent_bias)], axis=-1", "n], axis=-1"),
  ("cells/gru.py", "r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)", "z, r = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)"),
  ("cells/gru.py", "n = candidate(xn + r * hn)", "n = candidate(xn + hn)"),
  ("cells/gru.py", "structure.product(r * carry.hidden, weights)", "structure.product(carry.hidden, weights)"),
  ("cells/gru.py", "base.layer_norm(projected, params.kernel_scale, 3)", "base.layer_norm(projected, params.kernel_scale, 1)"),
  ("cells/lstm_variants.py", "o = jax.nn.sigmoid(o + see(-1, cell))", "o = jax.nn.sigmoid(o + see(-1, carry.cell))"),
  ("cells/lstm_variants.py", "keep = -i if self.coupled", "keep = i if self.coupled"),
  ("cells/lstm_variants.py", "norm.cell) + base.like(norm.cell_bias, cell)", "norm.cell)"),
  ("cells/slstm.py", "jnp.logaddexp(kept, log_i)", "jnp.logaddexp(kept, 0 * log_i)"),
  ("cells/slstm.py", "jnp.logaddexp(kept, log_i)", "jnp.maximum(kept, log_i)"),
  ("cells/slstm.py", "-1e30", "0.0"),
  ("cells/mgu.py", "return 1 - gate", "return gate"),
  ("cells/mogrifier.py", "if index % 2:", "if not index % 2 and index:"),
  ("cells/rhn.py", "hidden = t * jnp.tanh(n) + (1 - t) * hidden", "hidden = t * jnp.tanh(n) + hidden"),
  ("cells/lru.py", "drive * scale,", "drive,"),
  ("cells/s5.py", "return 2 * base.real_product", "return base.real_product"),
  ("cells/rg_lru.py", "jnp.maximum(-jnp.expm1(2 * log_decay), tiny)", "-jnp.expm1(2 * log_decay)"),
  ("cells/rg_lru.py", "jnp.expm1(2 * log_decay), tiny", "jnp.expm1(log_decay), tiny"),
  ("cells/minimal.py", "jax.nn.sigmoid(-keep) * g", "jax.nn.sigmoid(keep) * g"),
  ("cells/qrnn.py", "+ (1 - r) * s", "+ s"),
  ("cells/mlstm.py", "jnp.maximum(jnp.abs(found[..., -1:]), 1)", "jnp.abs(found[..., -1:])"),
  ("cells/mlstm.py", "k / math.sqrt(k.shape[-1])", "k"),
  ("cells/gru_d.py", "filled = jnp.where(observed, value, stale)", "filled = jnp.where(observed, value, stale + 0 * value)"),
  ("cells/gru_d.py", "last = jnp.where(observed, value, carry.last)", "last = value"),
  ("cells/gru_d.py", "(1 - d_input) * base.like(params.mean, last)", "(1 - d_input) * 0"),
  ("cells/gru_d.py", "mixed(r * hidden, by_rh)", "mixed(r * carry.hidden, by_rh)"),
  ("cells/gru_d.py", "jax.nn.relu(base.widen(rate))", "jnp.abs(base.widen(rate))"),
  ("cells/gru_d.py", "[:, :-1]", "[:, 1:]"),
  ("cells/conv_lstm.py", 'padding="SAME"', 'padding="SAME_LOWER"'),
  ("cells/conv_lstm.py", ".set(self.forget_bias)", ".set(0.0)"),
  ("cells/conv_lstm.py", "base.add_bias(self._convolve(inputs, params.kernel), params.bias)", "self._convolve(inputs, params.kernel)"),
  ("cells/conv_lstm.py", 'f"{letters}IO"', 'f"{letters[::-1]}IO"'),
  ("cells/structures.py", '"...nh,nhgk->...gnk"', '"...nh,nhgk->...ngk"'),
  ("cells/structures.py", "return weights[gates]", "return weights[gates.start - 1 : gates.stop - 1]"),
  # Executors: masks, resets, gradients, directions.
  ("executors/ticks.py", "functools.partial(select, resets), initial, carry", "functools.partial(select, resets), carry, initial"),
  ("executors/scan.py", "hold(now.mask, stepped, carry)", "stepped"),
  ("executors/scan.py", "blank(now.mask, outputs)", "outputs"),
  ("executors/fused.py", "d_previous = hold(now.mask, d_previous, d_carry)", "pass"),
  ("executors/fused.py", "d_stepped = blank(now.mask, d_carry)", "d_stepped = d_carry"),
  ("executors/fused.py", "d_previous = blank(now.resets, d_previous, keep=False)", "pass"),
  ("executors/fused.py", "d_params = add(d_params, rebuild(d_gate_params, zeros(params)))", "pass"),
  ("executors/fused.py", "start, xs, not reverse", "start, xs, True"),
  ("executors/fused.py", 'inlineable="false"', 'inlineable="true"'),
  ("executors/fused.py", "body, carry, ticks, reverse=reverse", "body, carry, ticks"),
  ("executors/linear.py", "decay = hold(ticks.mask, decay, jnp.ones_like(decay))", "pass"),
  ("executors/linear.py", "drive = blank(ticks.mask, drive)", "pass"),
  ("executors/linear.py", "0 if reverse else -1", "-1"),
  ("executors/newton.py", "d_before = hold(ticks.mask, d_before, cotangent)", "pass"),
  ("executors/newton.py", "stepped = hold(ticks.mask, stepped, before)", "pass"),
  ("executors/newton.py", "direct = blank(ticks.resets, direct, keep=False)", "pass"),
  ("executors/newton.py", "outputs[::-1] if reverse else outputs", "outputs"),
  ("kernels/linear_scan.py", "d_start = d_drive[first] * decay[first]", "d_start = d_drive[first]"),
  ("kernels/linear_scan.py", "before = _shift(hidden, start, reverse)", "before = hidden"),
  ("kernels/linear_scan.py", "return hidden[short:] if reverse", "return hidden[:time] if reverse"),
  ("kernels/pallas.py", "ticks = jnp.minimum(size, time - place(t) * size)", "ticks = size"),
  ("kernels/pallas.py", "k = ticks - 1 - k if reverse else k", "k = k"),
  ("kernels/pallas.py", "place = (lambda t: last - t) if reverse", "place = (lambda t: t) if reverse"),
  ("kernels/pallas.py", "@pl.when(t == 0)", "@pl.when(t >= 0)"),
  ("kernels/pallas.py", "a[0] * b[0] - a[1] * b[1]", "a[0] * b[0] + a[1] * b[1]"),
  ("kernels/mosaic_gpu.py", "place = self.time - 1 - t if reverse else t", "place = t"),
  ("kernels/mosaic_gpu.py", "if i + j < 2", "if i + j < 1"),
  ("kernels/mosaic_gpu.py", "if self.features % UNITS\n", "if False\n"),
  ("kernels/mosaic_gpu.py", "x = x if what.turned else x.T", "x = x.T if what.turned else x"),
  ("kernels/mosaic_gpu.py", "time - 1 - first - k if reverse", "time - 1 - k if reverse"),
  ("kernels/tiles.py", "[fill] * low + list(whole)", "list(whole) + [fill] * low"),
  ("executors/cudnn.py", "inputs[:, ::-1] if reverse", "inputs if reverse"),
  ("executors/cudnn.py", "params.kernel.T, params.recurrent.T", "params.kernel, params.recurrent"),
  ("executors/fused.py", "outputs.astype(d_outputs.dtype)", "0 * outputs.astype(d_outputs.dtype)"),
  ("executors/fused.py", "add_wide(jax.tree.map(wide, gate_params), gate_params)", "gate_params"),
  ("cells/noise.py", "jnp.where(keep[index], old, new)", "jnp.where(keep[index], new, old)"),
  ("cells/noise.py", "keeps[index] * old + (1 - keeps[index]) * new", "new"),
  ("cells/noise.py", "hidden=hidden * keep.astype(hidden.dtype)", "hidden=hidden"),
  ("kernels/matrix_scan.py", "past = past & (number[:, None] == number[None])[..., None]", "pass"),
  ("kernels/matrix_scan.py", "new += _where(same[-1], entering[-1], state)", "pass"),
  ("executors/chunkwise.py", "log_decay, key = blank(ticks.mask, (log_decay, key))", "pass"),
  ("executors/native.py", '"reverse": reverse', '"reverse": False'),
  ("executors/fused.py", "mixed = cell.recur(params, carries)", "mixed = 0 * cell.recur(params, carries)"),
  ("executors/native.py", "saved = _gates(cell, params, inputs, saved[1])", "saved = _gates(cell, params, 0 * inputs, saved[1])"),
  ("executors/native.py", "tuple(map(_turn, carries[1:]))", "tuple(carries[1:])"),
  ("executors/native.py", "inner = d_mixed[..., -cell.features :]", "inner = d_projected[..., -cell.features :]"),
  ("executors/native.py", '"recurrent": _weights(saved[1][0], d_mixed)', '"recurrent": _weights(saved[1][0], d_projected)'),
  ("executors/choice.py", "(MATRIX, LINEAR, NATIVE, GATED, OTHERS)", "(MATRIX, LINEAR, GATED, NATIVE, OTHERS)"),
  ("executors/choice.py", "(MATRIX, LINEAR, NATIVE, GATED, OTHERS)", "(LINEAR, MATRIX, NATIVE, GATED, OTHERS)"),
  ("kernels/native/loops.cc", "sums[g] + Load(inputs.bias + g * h + j, n)", "sums[g]"),
  ("kernels/native/loops.cc", "std::min(c.At(first), c.At(first + count - 1))", "c.At(first)"),
  ("kernels/matrix_scan.py", "short = -time % size", "short = 0"),
  ("kernels/native/loops.cc", "made.hidden = Load(c.initial_hidden + here, n);", ";"),
  ("kernels/native/loops.cc", "saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;", "saved[0] = f, saved[1] = i, saved[2] = g, saved[3] = o;"),
  ("kernels/native/loops.cc", "if (!real) made = old;", ""),
  ("kernels/native/loops.cc", "(f * old.cell + i * g)", "(f * old.cell)"),
  ("kernels/native/loops.cc", "sum <= 0 ? Vec<F>{} : sum", "sum > 0 ? sum : sum * 0"),
  ("kernels/native/loops.cc", "std::fma(a, high, -sum) + rest;", "F(0);"),
  ("kernels/native/loops.cc", '.Is("kernel", kernel, {depth, gh})', ""),
  ("kernels/native/checks.h", "error_.empty() && (value < low || value > high)", "false"),
  ("kernels/packed.py", "greatest / LARGEST", "greatest / 100"),
  ("kernels/native/products.cc", "for (; k < c.depth; ++k) step(k, sums[0]);", ";"),
  ("kernels/native/products.cc", "sum *= Widen(c.scale + j);", ";"),
  # unroll: what stands around them.
  ("unroll.py", "resets = None if resets is None else resets & mask", "pass"),
  ("unroll.py", "inputs = jax.tree.map(lambda x: select(mask, x, jnp.zeros_like(x)), inputs)", "pass"),
  ("unroll.py", "parts = [last, outputs] if reverse else [outputs, last]", "parts = [outputs, last]"),
  ("unroll.py", "cut = time - whole if reverse else whole", "cut = whole"),
  ("nn/bidirectional.py", "mask=mask, resets=ends", "mask=mask, resets=resets"),
]  # fmt: skip

TESTS = ["tests/kernels", "tests/executors", "tests/cells", "tests/nn"]


def caught(mutant: tuple[str, str, str]) -> bool:
  """Whether a test fails on a tree with this change.

  Raises:
    ValueError: if what is to be changed does not stand there.
  """
  file, old, new = mutant
  with tempfile.TemporaryDirectory() as directory:
    tree = pathlib.Path(directory)
    for part in ("recurrent", "tests", "docs"):
      shutil.copytree(
        ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__")
      )
    for part in ("setup.cfg", "pyproject.toml"):
      shutil.copy(ROOT / part, tree)
    path = tree / "recurrent" / file
    source = path.read_text()
    if old not in source:
      raise ValueError(f"{file} has no {old!r}: mend MUTANTS")
    path.write_text(source.replace(old, new, 1))
    # The tests of the file first: most mutants fall there.
    near = sorted(
      TESTS, key=lambda test: test.split("/")[1] != file.split("/")[0]
    )
    return any(
      subprocess.run(
        [
          sys.executable,
          "-m",
          "pytest",
          "-x",
          "-q",
          "-p",
          "no:cacheprovider",
          test,
        ],
        cwd=tree,
        capture_output=True,
        check=False,
        env={
          **os.environ,
          "PYTHONPATH": str(tree),
          "JAX_PLATFORMS": "cpu",
          "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
        },
      ).returncode
      for test in near
    )


def main() -> int:
  """Tries all mutants; the exit code is 1 if less than 95 % are caught."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default="", help="mutants with this in them")
  only = parser.parse_args().only
  mutants = [m for m in MUTANTS if only in " ".join(m)]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    results = []
    for mutant, found in zip(mutants, pool.map(caught, mutants), strict=True):
      results.append(found)
      print(
        "caught  " if found else "SURVIVED", *mutant[:1], mutant[1], flush=True
      )
  print(f"{sum(results)} of {len(results)} caught")
  return int(sum(results) < 0.95 * len(results))


if __name__ == "__main__":
  sys.exit(main())
