import platform

import pytest

from recurrent import memory


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="it is about glibc"
)
def test_it_is_had_with_glibc():
  assert memory.keep_freed()


def test_elsewhere_it_says_that_it_is_not(monkeypatch):
  monkeypatch.setattr("sys.platform", "darwin")
  assert not memory.keep_freed()
