"""Files from elsewhere are data: reading one runs none of what it contains."""

import ast
import io
import json
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from experiments import memory
from recurrent.data import labelled, tokenizers
from recurrent.errors import DataError

ROOT = pathlib.Path(__file__).parents[1]


class Payload:
  """An object that makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_the_payload_would_be_noticed(tmp_path):
  pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
  assert (tmp_path / "ran").exists()


def as_objects(payload):
  """An .npz file with an array of objects."""
  file = io.BytesIO()
  np.savez(file, inputs=np.array([payload] * 3), labels=np.arange(3))
  return file.getvalue()


def as_pickle(payload):
  """A pickle with the name of an .npz file, which NumPy could load."""
  return pickle.dumps(payload)


def as_member(payload):
  """An .npz file whose member is a pickle."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("inputs.npy", pickle.dumps(payload))
    archive.writestr("labels.npy", pickle.dumps(payload))
  return file.getvalue()


@pytest.mark.parametrize("content", [as_objects, as_pickle, as_member])
@pytest.mark.parametrize(
  "read",
  [
    lambda path: labelled.read(path),
    lambda path: memory.read_inputs(path, memory.Config().bound()),
  ],
  ids=["classification", "memory"],
)
def test_no_pickle_of_an_npz_file_is_loaded(read, content, tmp_path):
  path = tmp_path / "data.npz"
  path.write_bytes(content(Payload(tmp_path / "ran")))
  with pytest.raises(DataError):
    read(str(path))
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "content",
  [
    pickle.dumps(Payload("ran")),
    *(
      json.dumps(x).encode()
      for x in (
        {"tokenizer": "os.system", "words": ["touch ran"]},
        {"tokenizer": "__class__"},
        {"tokenizer": ["byte"]},
        {"tokenizer": "byte", "__init__": "x"},
        {"tokenizer": "sentencepiece", "model": "bm90IGEgbW9kZWw="},
        ["tokenizer"],
        "byte",
      )
    ),
  ],
)
def test_a_tokenizer_is_read_as_data(content, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "tokenizer.json"
  path.write_bytes(content)
  with pytest.raises(DataError):
    tokenizers.load(path)
  assert [x.name for x in tmp_path.iterdir()] == ["tokenizer.json"]


# Modules whose formats can contain code.
MODULES = {
  *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib"),
  *("marshal", "shelve"),
}


def dangerous(tree):
  """What could run code from a file, or give a text to a shell."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    else:
      names = []
    yield from (name for name in names if name.split(".")[0] in MODULES)
    if not isinstance(node, ast.Call):
      continue
    text = ast.unparse(node.func)
    given = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if text in ("eval", "exec", "os.system", "os.popen", "yaml.load"):
      yield text
    if text.endswith("np.load") and given.get("allow_pickle") != "False":
      yield text
    if given.get("shell", "False") != "False":
      yield f"{text}(shell=...)"
    if given.get("allow_pickle", "False") != "False":
      yield f"{text}(allow_pickle=...)"


FILES = [
  path
  for package in ("recurrent", "experiments", "launch")
  for path in sorted((ROOT / package).rglob("*.py"))
]


def test_no_module_loads_what_could_contain_code():
  found = {
    str(path.relative_to(ROOT)): names
    for path in FILES
    if (names := list(dangerous(ast.parse(path.read_text()))))
  }
  assert found == {}


@pytest.mark.parametrize(
  "code",
  [
    "import pickle",
    "from joblib import load",
    "np.load(x)",
    "np.load(x, allow_pickle=True)",
    "eval(x)",
    "subprocess.run(x, shell=True)",
  ],
)
def test_such_code_would_be_found(code):
  assert list(dangerous(ast.parse(code)))
