"""Worker processes, which run functions on request."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any
from unittest import mock

_starting = threading.Lock()


class WorkerError(Exception):
  """A function failed in its worker process, or the process has ended."""


class Worker:
  """A process that is started when it is first asked for something.

  After a failure the process is killed, and the next request starts a new one:
  a device that was used wrongly may be unusable in that process, and a kernel
  may never return.

  Args:
    environment: environment variables that are added to our own.
    *setup: a function and its arguments, which each new process runs first.
  """

  def __init__(self, environment: Mapping[str, str], *setup: Any):
    self._environment = environment
    self._setup = setup
    self._pool: ProcessPoolExecutor | None = None

  def ask(
    self,
    function: Callable[..., Any],
    *args: Any,
    timeout: float | None = None,
  ) -> Any:
    """Runs a function in the process and waits for its value.

    Args:
      function: a function of a module.
      *args: its arguments.
      timeout: seconds after which the process is killed; None: no limit.

    Raises:
      WorkerError: if the function fails or takes too long, or the process has
        ended.
    """
    try:
      if self._pool is None:
        self._pool = start(self._environment)
        if self._setup:
          submit(self._pool, *self._setup).result(timeout)
      return submit(self._pool, function, *args).result(timeout)
    except WorkerError:
      self.close()
      raise
    except BrokenProcessPool as error:
      self.close()
      raise WorkerError("its process ended") from error
    except TimeoutError as error:
      self.close()
      raise WorkerError(f"it took more than {timeout:.0f} s") from error

  def close(self) -> None:
    """Kills the process, if there is one."""
    pool, self._pool = self._pool, None
    if pool is not None:
      for process in list((pool._processes or {}).values()):
        process.kill()
      pool.shutdown()


def start(environment: Mapping[str, str]) -> ProcessPoolExecutor:
  """Starts a process with these environment variables added to our own."""
  pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
  # The process takes over the variables while `submit` starts it.
  with _starting, mock.patch.dict(os.environ, environment):
    begun = pool.submit(_begin)
  begun.result()
  return pool


def submit(pool: Executor, function: Callable[..., Any], *args: Any) -> Future:
  """Runs a function in the process; its errors become `WorkerError`s."""
  return pool.submit(_guarded, function, *args)


def _begin():
  """Redirects stdout to stderr, and ends the process with its parent."""
  os.dup2(2, 1)  # libraries may print to stdout
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent():
  # A worker ends with its parent. If the parent is killed it sends no message,
  # and a worker that went on would keep the memory of the device.
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _guarded(function, *args):
  try:
    return function(*args)
  except Exception as error:  # the type may not be importable in the parent
    reason = str(error).strip().splitlines() or [""]
    raise WorkerError(f"{type(error).__name__}: {reason[0]}") from None
