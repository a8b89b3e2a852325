"""Worker processes, which run functions on request."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any
from unittest import mock


class WorkerError(Exception):
  """A function failed in its worker process, or the process has ended."""


def start(environment: Mapping[str, str]) -> Executor:
  """Starts a process with these environment variables added to our own."""
  pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
  with mock.patch.dict(os.environ, environment):
    # Libraries may print to stdout: it is redirected to stderr.
    pool.submit(os.dup2, 2, 1).result()
  return pool


def submit(pool: Executor, function: Callable[..., Any], *args: Any) -> Future:
  """Runs a function in the process; its errors become `WorkerError`s."""
  return pool.submit(_guarded, function, *args)


def ask(pool: Executor, function: Callable[..., Any], *args: Any) -> Any:
  """Runs a function in the process and waits for its value.

  Raises:
    WorkerError: if the function fails, or the process has ended.
  """
  try:
    return submit(pool, function, *args).result()
  except BrokenProcessPool as error:
    raise WorkerError("its process ended") from error


def _guarded(function, *args):
  try:
    return function(*args)
  except Exception as error:  # the type may not be importable in the parent
    reason = str(error).strip().splitlines() or [""]
    raise WorkerError(f"{type(error).__name__}: {reason[0]}") from None
