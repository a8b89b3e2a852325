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
    capacity: bytes of the device's main memory.
    on_chip: bytes that it can keep beside its units: VMEM, or the L2 cache.
    link: bytes/s that it can send to the devices of its pod or machine.
    network: bytes/s that it can send to other pods or machines.
    group: devices of a pod or machine.
  """

  narrow: float
  single: float
  memory: float
  no_bfloat16: bool = False
  capacity: float = 0.0
  on_chip: float = 0.0
  link: float = 0.0
  network: float = 0.0
  group: int = 8


GIB = 1 << 30
V5E = Peak(
  *(197e12, 197e12, 0.819e12),
  capacity=16 * GIB,
  on_chip=128e6,
  link=200e9,
  network=3e9,
  group=256,
)

# By part of the device's name, the first that fits; the figures of the data
# sheets as remembered, to be checked before they are quoted.
PEAKS = {
  "H200": Peak(
    *(989e12, 494e12, 4.8e12),
    capacity=141e9,
    on_chip=50e6,
    link=450e9,
    network=50e9,
  ),
  "H100 PCIe": Peak(
    *(756e12, 378e12, 2.0e12),
    capacity=80e9,
    on_chip=50e6,
    link=64e9,
    network=25e9,
  ),
  "H100": Peak(
    *(989e12, 494e12, 3.35e12),
    capacity=80e9,
    on_chip=50e6,
    link=450e9,
    network=50e9,
  ),
  "A100-SXM4-40GB": Peak(
    *(312e12, 156e12, 1.555e12),
    capacity=40e9,
    on_chip=40e6,
    link=300e9,
    network=25e9,
  ),
  "A100": Peak(
    *(312e12, 156e12, 2.0e12),
    capacity=80e9,
    on_chip=40e6,
    link=300e9,
    network=25e9,
  ),
  "L4": Peak(
    *(121e12, 60e12, 0.3e12),
    capacity=24e9,
    on_chip=48e6,
    link=32e9,
    network=12e9,
  ),
  "T4": Peak(
    *(65e12, 8.1e12, 0.32e12),
    no_bfloat16=True,
    capacity=16e9,
    on_chip=4e6,
    link=16e9,
    network=4e9,
  ),
  "TPU v4": Peak(
    *(275e12, 275e12, 1.228e12),
    capacity=32 * GIB,
    on_chip=128e6,
    link=300e9,
    network=3e9,
    group=4096,
  ),
  "TPU v5 lite": V5E,
  "TPU v5e": V5E,
  # The name in JAX is "TPU v5" or "TPU v5p".
  "TPU v5": Peak(
    *(459e12, 459e12, 2.765e12),
    capacity=95e9,
    on_chip=128e6,
    link=600e9,
    network=6e9,
    group=6144,
  ),
  "TPU v6": Peak(
    *(918e12, 918e12, 1.64e12),
    capacity=32 * GIB,
    on_chip=128e6,
    link=400e9,
    network=6e9,
    group=256,
  ),
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
