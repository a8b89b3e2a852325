"""The least time that a problem can take on a device, by published peaks."""

from typing import Any, NamedTuple

from experiments.benchmarks.problems import Problem


class Peak(NamedTuple):
  """Published peaks of a device, for dense products without sparsity.

  Attributes:
    narrow: FLOP/s with bfloat16 or float16 factors.
    single: FLOP/s of a float32 product by default: TF32, or bfloat16 on TPUs.
    memory: bytes/s of the device's main memory.
    no_bfloat16: whether it has no unit for bfloat16.
  """

  narrow: float
  single: float
  memory: float
  no_bfloat16: bool = False


# By part of the device's name, the first that fits; the figures of the data
# sheets as remembered, to be checked before they are quoted.
PEAKS = {
  "H200": Peak(989e12, 494e12, 4.8e12),
  "H100 PCIe": Peak(756e12, 378e12, 2.0e12),
  "H100": Peak(989e12, 494e12, 3.35e12),
  "A100-SXM4-40GB": Peak(312e12, 156e12, 1.555e12),
  "A100": Peak(312e12, 156e12, 2.0e12),
  "L4": Peak(121e12, 60e12, 0.3e12),
  "T4": Peak(65e12, 8.1e12, 0.32e12, no_bfloat16=True),
  "TPU v5 lite": Peak(197e12, 197e12, 0.819e12),
  "TPU v5e": Peak(197e12, 197e12, 0.819e12),
  "TPU v6": Peak(918e12, 918e12, 1.64e12),
}


def find(device: str) -> Peak | None:
  """Returns the peaks of a device by its name in JAX; None if unknown."""
  return next((PEAKS[name] for name in PEAKS if name in device), None)


def roof(
  problem: Problem, work: str, dtype: str, device: str, milliseconds: float
) -> dict[str, Any]:
  """Compares a time with the least time that the device allows.

  The products are counted, and the bytes that must be moved if the recurrent
  weights stay on the chip. A recurrence is far from this limit, since its time
  steps come one after the other.

  Args:
    problem: the problem.
    work: the kind of work.
    dtype: dtype of the computation.
    device: the device's name.
    milliseconds: the measured time.

  Returns:
    `roof_us_per_time_step`, the least time; `roof_percent`, its share of the
    measured time; `roof_by`, whether FLOPs or bytes limit it. The values are
    "unknown" where the device's peaks are.
  """
  peak = find(device)
  keys = "roof_us_per_time_step", "roof_percent", "roof_by"
  if peak is None or (dtype == "bfloat16" and peak.no_bfloat16):
    return dict.fromkeys(keys, "unknown")
  rate = peak.single if dtype == "float32" else peak.narrow
  least = {
    "FLOPs": problem.flops(work) / rate,
    "bytes": problem.bytes(work, dtype) / peak.memory,
  }
  by = max(least, key=least.__getitem__)
  shown = 1e6 * least[by] / problem.time, 1e5 * least[by] / milliseconds, by
  return dict(zip(keys, shown, strict=True))
