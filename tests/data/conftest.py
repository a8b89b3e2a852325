"""Runs data tests without network or TensorFlow, each with its own cache."""

import socket
import sys

import pytest


def refuse(*args, **kwargs):
  raise AssertionError(f"tried to use the network: {args} {kwargs}")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  yield
  assert "tensorflow" not in sys.modules


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("RECURRENT_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"
