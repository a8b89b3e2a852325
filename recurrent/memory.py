"""Settings of the memory allocator of this process."""

import ctypes
import sys

# Constants of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed() -> bool:
  """Makes the C allocator keep freed memory, so that later arrays reuse it.

  By default glibc returns the memory of a large array to the operating system
  as soon as it is freed. A compiled training step allocates the same arrays
  again at every call, and the system clears every new page, which takes a fifth
  of the time of a training step on a CPU. The experiments call this function at
  their start; a notebook may do the same.

  Returns:
    True if the allocator took the setting, which needs Linux with glibc.
  """
  if not sys.platform.startswith("linux"):
    return False
  set_option = getattr(ctypes.CDLL(None), "mallopt", None)
  if set_option is None:
    return False
  # Neither value may exceed half of the address space, or a C int.
  return bool(
    set_option(M_MMAP_THRESHOLD, 1 << 30)
    and set_option(M_TRIM_THRESHOLD, (1 << 31) - 1)
  )
