"""Weights on disk: reading them safely."""

from __future__ import annotations

from ickd_pl.weights.read import load_student, load_teacher, load_weights, read_file, read_state_dict

__all__ = ["load_student", "load_teacher", "load_weights", "read_file", "read_state_dict"]
