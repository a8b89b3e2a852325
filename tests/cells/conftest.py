"""Sorts the laws by cell, so that they reuse the functions compiled for it."""


def pytest_collection_modifyitems(items):
  # Only the laws are sorted, among the positions that they have in the list.
  places = [k for k, item in enumerate(items) if "laws_test" in item.nodeid]
  laws = sorted((items[k] for k in places), key=cell_of)
  for place, item in zip(places, laws, strict=True):
    items[place] = item


def cell_of(item):
  call = getattr(item, "callspec", None)
  return call.params.get("name", "") if call else ""
