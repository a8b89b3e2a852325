"""Processes of their own, which run functions on request."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any
from unittest import mock


class WorkerError(Exception):
  """A process could not do what was asked of it, or is gone."""


def start(environment: Mapping[str, str]) -> Executor:
  """A new process with these variables beside those of this one."""
  pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
  with mock.patch.dict(os.environ, environment):
    # What libraries print must not get into this script's output.
    pool.submit(os.dup2, 2, 1).result()
  return pool


def submit(pool: Executor, function: Callable[..., Any], *args: Any) -> Future:
  """Asks for a function's value; any error there becomes a `WorkerError`."""
  return pool.submit(_guarded, function, *args)


def ask(pool: Executor, function: Callable[..., Any], *args: Any) -> Any:
  """Waits for a function's value.

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
  except Exception as error:  # whose type may not be known on the other side
    reason = str(error).strip().splitlines() or [""]
    raise WorkerError(f"{type(error).__name__}: {reason[0]}") from None
