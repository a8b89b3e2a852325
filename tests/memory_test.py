import ctypes
import platform
import subprocess
import sys

import pytest

from recurrent import memory

# Allocates 64 MiB, writes to it and frees it, three times; prints how many page
# faults the third time had. The module is loaded by itself, without JAX.
PAGES = """
import ctypes, importlib.util, resource, sys

if sys.argv[1] == "kept":
  spec = importlib.util.spec_from_file_location("memory", sys.argv[2])
  memory = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(memory)
  assert memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 1 << 26
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  array = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
  ctypes.memset(array, 1, size)
  libc.free(array)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="it is about glibc"
)
def test_an_array_takes_the_memory_of_one_that_was_freed():
  def faults(how):
    command = [sys.executable, "-c", PAGES, how, memory.__file__]
    return int(subprocess.check_output(command))

  # Huge pages are 2 MiB each, of which 64 MiB are 32.
  assert faults("returned") >= 16
  assert faults("kept") < 16


def test_elsewhere_no_option_is_set(monkeypatch):
  def load(name):
    raise AssertionError("the C library is not to be asked")

  monkeypatch.setattr(ctypes, "CDLL", load)
  monkeypatch.setattr("sys.platform", "darwin")
  assert not memory.keep_freed()
