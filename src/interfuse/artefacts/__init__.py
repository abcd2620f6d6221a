"""Artefacts: what a run leaves for use. They are read without the run, its data, or the code of the models."""

from __future__ import annotations

from interfuse.artefacts.composing import Mean, check_fit, composed, mean_of
from interfuse.artefacts.folder import Artefact, load, write
from interfuse.artefacts.making import Trained, make
from interfuse.artefacts.manifest import Answers, Fusion, Manifest, Origin, Owner, Part, TensorForm
from interfuse.artefacts.programs import Program, export_program

__all__ = [
    "Answers",
    "Artefact",
    "Fusion",
    "Manifest",
    "Mean",
    "Origin",
    "Owner",
    "Part",
    "Program",
    "TensorForm",
    "Trained",
    "check_fit",
    "composed",
    "export_program",
    "load",
    "make",
    "mean_of",
    "write",
]
