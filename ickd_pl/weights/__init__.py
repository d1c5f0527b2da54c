"""Weights on disk: reading them safely, and writing a student for others."""

from __future__ import annotations

from ickd_pl.weights.export import export_student
from ickd_pl.weights.read import load_teacher, load_weights, read_file, read_state_dict, weights_file
from ickd_pl.weights.student import StudentConfig, load_student, read_config

__all__ = [
    "StudentConfig",
    "export_student",
    "load_student",
    "load_teacher",
    "load_weights",
    "read_config",
    "read_file",
    "read_state_dict",
    "weights_file",
]
