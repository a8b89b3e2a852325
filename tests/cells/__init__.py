"""Tests of `recurrent.cells`."""
