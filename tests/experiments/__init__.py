"""Tests of the experiments, as commands and as functions."""

import pytest

pytest.register_assert_rewrite("tests.experiments.scripts")
