"""Makes docs/cells.md, the table of the methods that each cell supports.

  python -m tests.cells.support > docs/cells.md

The entries come from the executors. `support_test.py` checks that the file is
up to date, and `laws_test.py` that its entries are true.
"""

import inspect

from recurrent.cells import CELLS
from recurrent.executors import EXECUTORS

HEAD = """# Cells and methods

Made by `python -m tests.cells.support > docs/cells.md`.

Where a cell runs by a method, it does so with masks, resets, both directions,
a carry in and out, recomputation, gradients of everything, in float32, float64
and bfloat16, and equals `"scan"`: 1e-12 in float64, 3e-5 in float32, forward
and every gradient. `tests/cells/laws_test.py` shows it for every row below
(`make laws` runs all laws for all rows; `make test` all laws for one cell of
each kind, and the main ones for all rows). For `"tpu_kernel"`, a kernel for
TPUs that is interpreted elsewhere, `tests/kernels/tpu_test.py` shows it, within
1e-5 in float32: see [On a TPU](tpu.md). `"gpu_kernel"` (within 2e-5; not
float64) and `"cudnn"` (float32 only; no masks, no resets) run on NVIDIA GPUs
and nowhere else: see [On a GPU](gpu.md). `"cpu_kernel"` computes in float32 and
float64 only, on a CPU, with a C++ compiler on the path.

`recurrent.explain(cell)` says which method "auto" takes, and why.

"""


def table() -> str:
  """Returns the text of docs/cells.md."""
  build = {name: make(8) for name, make in CELLS.items()}
  reasons: dict[str, int] = {}
  lines = [
    f"| cell | {' | '.join(EXECUTORS)} | what |",
    f"|---|{'---|' * len(EXECUTORS)}---|",
  ]
  for name, cell in build.items():
    row = []
    for executor in EXECUTORS.values():
      reason = executor.why_not(cell)
      if reason:
        number = reasons.setdefault(reason, 1 + len(reasons))
        row.append(f"no ({number})")
      else:
        row.append("yes")
    about = inspect.getdoc(type(cell)).splitlines()[0].rstrip(".")
    about = about.replace("|", "\\|")
    lines.append(f"| `{name}` | {' | '.join(row)} | {about} |")
  notes = [f"{number}. It {reason}." for reason, number in reasons.items()]
  return HEAD + "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


if __name__ == "__main__":
  print(table(), end="")
