# ruff: noqa: E501
"""Mutation testing: changes lines of the library and checks that tests fail.

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

# (file under recurrent/, text to replace, its replacement)
MUTANTS = [
  # Cells: a bias dropped, gates swapped, a sign, a term.
  ("cells/rnn.py", "numerics.affine(inputs, params.kernel, params.bias)", "numerics.product(inputs, params.kernel)"),
  ("cells/rnn.py", "projected + mixed, carry", "projected - mixed, carry"),
  ("cells/lstm.py", "numerics.affine(inputs, params.kernel, params.bias)", "numerics.product(inputs, params.kernel)"),
  ("cells/lstm.py", "i, f, g, o = numerics.split_gates", "f, i, g, o = numerics.split_gates"),
  ("cells/lstm.py", "i, f, g, o = numerics.split_gates", "i, f, o, g = numerics.split_gates"),
  ("cells/lstm.py", "jax.nn.sigmoid(o) * jnp.tanh(cell)", "jax.nn.sigmoid(o) * cell"),
  ("cells/lstm.py", ".set(self.forget_bias)", ".set(0.0)"),
  ("cells/gru.py", "numerics.add_bias(n, params.recurrent_bias)], axis=-1", "n], axis=-1"),
  ("cells/gru.py", "r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)", "z, r = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)"),
  ("cells/gru.py", "n = candidate(xn + r * hn)", "n = candidate(xn + hn)"),
  ("cells/gru.py", "structure.product(r * carry.hidden, weights)", "structure.product(carry.hidden, weights)"),
  ("cells/gru.py", "numerics.layer_norm(projected, params.kernel_scale, 3)", "numerics.layer_norm(projected, params.kernel_scale, 1)"),
  ("cells/lstm_variants.py", "o = jax.nn.sigmoid(o + see(-1, cell))", "o = jax.nn.sigmoid(o + see(-1, carry.cell))"),
  ("cells/lstm_variants.py", "keep = -i if self.coupled", "keep = i if self.coupled"),
  ("cells/lstm_variants.py", "        norm.cell_bias, cell\n", "        0 * norm.cell_bias, cell\n"),
  ("cells/slstm.py", "jnp.logaddexp(kept, log_i)", "jnp.logaddexp(kept, 0 * log_i)"),
  ("cells/slstm.py", "jnp.logaddexp(kept, log_i)", "jnp.maximum(kept, log_i)"),
  ("cells/slstm.py", "full_like(start, -1e30)", "full_like(start, 0.0)"),
  ("cells/mgu.py", "return 1 - gate", "return gate"),
  ("cells/mogrifier.py", "if index % 2:", "if not index % 2 and index:"),
  ("cells/rhn.py", "hidden = t * jnp.tanh(n) + (1 - t) * hidden", "hidden = t * jnp.tanh(n) + hidden"),
  ("cells/lru.py", "drive * scale,", "drive,"),
  ("cells/s5.py", "return 2 * numerics.real_product", "return numerics.real_product"),
  ("cells/rg_lru.py", "jnp.maximum(-jnp.expm1(2 * log_decay), tiny)", "-jnp.expm1(2 * log_decay)"),
  ("cells/rg_lru.py", "jnp.expm1(2 * log_decay), tiny", "jnp.expm1(log_decay), tiny"),
  ("cells/minimal.py", "jax.nn.sigmoid(-keep) * g", "jax.nn.sigmoid(keep) * g"),
  ("cells/qrnn.py", "+ (1 - r) * s", "+ s"),
  ("cells/mlstm.py", "jnp.maximum(jnp.abs(found[..., -1:]), 1)", "jnp.abs(found[..., -1:])"),
  ("cells/mlstm.py", "k / math.sqrt(k.shape[-1])", "k"),
  ("cells/gru_d.py", "filled = jnp.where(observed, value, stale)", "filled = jnp.where(observed, value, stale + 0 * value)"),
  ("cells/gru_d.py", "last = jnp.where(observed, value, carry.last)", "last = value"),
  ("cells/gru_d.py", "      params.mean, last\n", "      0 * params.mean, last\n"),
  ("cells/gru_d.py", "mixed(r * hidden, by_rh)", "mixed(r * carry.hidden, by_rh)"),
  ("cells/gru_d.py", "jax.nn.relu(numerics.widen(rate))", "jnp.abs(numerics.widen(rate))"),
  ("cells/gru_d.py", "[:, :-1]", "[:, 1:]"),
  ("cells/conv_lstm.py", 'padding="SAME"', 'padding="SAME_LOWER"'),
  ("cells/conv_lstm.py", ".set(self.forget_bias)", ".set(0.0)"),
  ("cells/conv_lstm.py", "numerics.add_bias(self._convolve(inputs, params.kernel), params.bias)", "self._convolve(inputs, params.kernel)"),
  ("cells/conv_lstm.py", 'f"{letters}IO"', 'f"{letters[::-1]}IO"'),
  ("cells/structures.py", '"...nh,nhgk->...gnk"', '"...nh,nhgk->...ngk"'),
  ("cells/structures.py", "return weights[gates]", "return weights[gates.start - 1 : gates.stop - 1]"),
  # Executors: masks, resets, gradients, directions.
  ("masking.py", "functools.partial(select, resets), initial, carry", "functools.partial(select, resets), carry, initial"),
  ("executors/scan.py", "hold(now.mask, stepped, carry)", "stepped"),
  ("executors/scan.py", "blank(now.mask, outputs)", "outputs"),
  ("executors/fused.py", "d_previous = hold(now.mask, d_previous, d_carry)", "pass"),
  ("executors/fused.py", "d_stepped = blank(now.mask, d_carry)", "d_stepped = d_carry"),
  ("executors/fused.py", "d_previous = blank(now.resets, d_previous, keep=False)", "pass"),
  ("executors/fused.py", "d_params = rebuild(d_gate_params, zeros(params))", "d_params = zeros(params)"),
  ("executors/fused.py", "start, xs, not reverse", "start, xs, True"),
  ("executors/fused.py", 'inlineable="false"', 'inlineable="true"'),
  ("executors/fused.py", "body, carry, time_steps, reverse=reverse", "body, carry, time_steps"),
  ("executors/linear.py", "decay = hold(time_steps.mask, decay, jnp.ones_like(decay))", "pass"),
  ("executors/linear.py", "drive = blank(time_steps.mask, drive)", "pass"),
  ("executors/linear.py", "0 if reverse else -1", "-1"),
  ("executors/newton.py", "d_before = hold(time_steps.mask, d_before, cotangent)", "pass"),
  ("executors/newton.py", "stepped = hold(time_steps.mask, stepped, before)", "pass"),
  ("executors/newton.py", "direct = blank(time_steps.resets, direct, keep=False)", "pass"),
  ("executors/newton.py", "outputs[::-1] if reverse else outputs", "outputs"),
  ("kernels/linear_scan.py", "d_start = d_drive[first] * decay[first]", "d_start = d_drive[first]"),
  ("kernels/linear_scan.py", "before = _shift(states, start, reverse)", "before = states"),
  ("kernels/chunks.py", "array[len(array) - time :] if front", "array[:time] if front"),
  ("kernels/tpu.py", "time_steps = jnp.minimum(size, time - place(t) * size)", "time_steps = size"),
  ("kernels/tpu.py", "k = time_steps - 1 - k if reverse else k", "k = k"),
  ("kernels/tpu.py", "place = (lambda t: last - t) if reverse", "place = (lambda t: t) if reverse"),
  ("kernels/tpu.py", "@pl.when(t == 0)", "@pl.when(t >= 0)"),
  ("kernels/tpu.py", "a[0] * b[0] - a[1] * b[1]", "a[0] * b[0] + a[1] * b[1]"),
  ("kernels/gpu.py", "place = self.time - 1 - t if reverse else t", "place = t"),
  ("kernels/gpu.py", "if i + j < 2", "if i + j < 1"),
  ("kernels/gpu.py", "if self.features % UNITS\n", "if False\n"),
  ("kernels/gpu.py", "x = x if what.turned else x.T", "x = x.T if what.turned else x"),
  ("kernels/gpu.py", "time - 1 - first - k if reverse", "time - 1 - k if reverse"),
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
  ("executors/chunkwise.py", "log_decay, key = blank(time_steps.mask, (log_decay, key))", "pass"),
  ("executors/cpu_kernel.py", '"reverse": reverse', '"reverse": False'),
  ("executors/fused.py", "mixed = cell.recur(params, carries)", "mixed = 0 * cell.recur(params, carries)"),
  ("executors/cpu_kernel.py", "saved = _gates(cell, params, inputs, saved[1])", "saved = _gates(cell, params, 0 * inputs, saved[1])"),
  ("executors/cpu_kernel.py", "parts = hidden, *map(_turn, cells)", "parts = hidden, *cells"),
  ("executors/cpu_kernel.py", "inner = d_mixed[..., -cell.features :]", "inner = d_projected[..., -cell.features :]"),
  ("executors/cpu_kernel.py", '"recurrent": _weights(saved[1][0], d_mixed)', '"recurrent": _weights(saved[1][0], d_projected)'),
  ("executors/choice.py", "(MATRIX, LINEAR, CPU_KERNEL, GATED, OTHERS)", "(MATRIX, LINEAR, GATED, CPU_KERNEL, OTHERS)"),
  ("executors/choice.py", "(MATRIX, LINEAR, CPU_KERNEL, GATED, OTHERS)", "(LINEAR, MATRIX, CPU_KERNEL, GATED, OTHERS)"),
  ("kernels/cpu/loops.cc", "sums[g] + Load(inputs.bias + g * h + j, n)", "sums[g]"),
  ("kernels/cpu/loops.cc", "std::min(c.At(first), c.At(first + count - 1))", "c.At(first)"),
  ("kernels/chunks.py", "(spare, 0) if front", "(0, spare) if front"),
  ("kernels/cpu/loops.cc", "made.hidden = Load(c.initial_hidden + here, n);", ";"),
  ("kernels/cpu/loops.cc", "saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;", "saved[0] = f, saved[1] = i, saved[2] = g, saved[3] = o;"),
  ("kernels/cpu/loops.cc", "if (!real) made = old;", ""),
  ("kernels/cpu/loops.cc", "(f * old.cell + i * g)", "(f * old.cell)"),
  ("kernels/cpu/loops.cc", "sum <= 0 ? Vec<F>{} : sum", "sum > 0 ? sum : sum * 0"),
  ("kernels/cpu/loops.cc", "std::fma(a, high, -sum) + rest;", "F(0);"),
  ("kernels/cpu/loops.cc", '.Is("kernel", kernel, {depth, gh})', ""),
  ("kernels/cpu/checks.h", "error_.empty() && (value < low || value > high)", "false"),
  ("kernels/packed.py", "greatest / LARGEST", "greatest / 100"),
  ("kernels/cpu/products.cc", "for (; k < c.depth; ++k) step(k, sums[0]);", ";"),
  ("kernels/cpu/products.cc", "sum *= Widen(c.scale + j);", ";"),
  # unroll and Bidirectional.
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
    ValueError: if the file does not contain the text to replace.
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
      for test in _in_order(pathlib.PurePath(file), tree)
    )


def _in_order(file: pathlib.PurePath, tree: pathlib.Path) -> list[str]:
  """All tests; those that are most likely to catch a change come first."""
  folder = file.parts[0].removesuffix(".py")
  own = [
    f"tests/{file.with_suffix('')}_test.py",
    f"tests/{file.parent}_test.py",
  ]
  shared = ["tests/cells/formulas_test.py"] if folder == "cells" else []
  near = sorted(TESTS, key=lambda test: test.split("/")[1] != folder)
  return [test for test in [*own, *shared] if (tree / test).exists()] + near


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
