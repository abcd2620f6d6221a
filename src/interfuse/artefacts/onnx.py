"""Programs as ONNX, for runtimes that are not PyTorch: servers in other languages, browsers, phones."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from interfuse.artefacts.manifest import TensorForm
from interfuse.artefacts.programs import Program
from interfuse.data.inputs import named, together
from interfuse.errors import ConfigError, ModelError

ROWS = 64
"""Random samples on which an ONNX model is compared with the program it was made of."""
FAR = 1e-3
"""So much may the two differ, in absolute value plus relative to the largest score."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(program: Program, forms: Mapping[str, TensorForm], path: Path) -> float:
    """Write a program as ONNX, with any number of samples, and compare the two on random ones.

    Returns: the largest difference.
    Raises:
        ConfigError: a package is missing; says which.
        ModelError: ONNX has no such operation, or gives something else.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"ONNX needs {package}; in a checkout of interfuse: pip install '.[serve]'")
    import onnxruntime

    batch, samples = torch.export.Dim("batch", min=1), [_random(form, 2) for form in forms.values()]
    names = [f"{name}.out" if name in forms else name for name in program.outputs]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of PyTorch's exporter, about itself
        try:
            made = torch.onnx.export(
                _Positional(program, tuple(forms)).eval(),
                tuple(samples),
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in samples),),
                input_names=list(forms),
                output_names=names,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ModelError(f"the program cannot be written as ONNX: {str(error).splitlines()[0]}") from error
    assert made is not None
    made.save(path)
    x = {name: _random(form, ROWS) for name, form in forms.items()}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in x.items()})
    wanted = named(program(together(x)))
    far = 0.0
    for (name, expected), answer in zip(wanted.items(), found, strict=True):
        difference = float((torch.from_numpy(answer) - expected).abs().max())
        if not difference <= FAR * (1 + float(expected.abs().max())):
            raise ModelError(f"as ONNX the program gives other values of {name}: they differ by up to {difference:.3g}")
        far = max(far, difference)
    return far


class _Positional(nn.Module):
    """A program that takes its inputs one by one."""

    def __init__(self, program: Program, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.program, self.inputs = program, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.program(together(dict(zip(self.inputs, tensors, strict=True))))
        return tuple(named(found).values())


def _random(form: TensorForm, rows: int) -> Tensor:
    shape, draws = (rows, *form.shape), torch.Generator().manual_seed(0)
    if form.dtype == "float32":
        return torch.randn(shape, generator=draws)
    return torch.randint(
        0, 256 if form.dtype == "uint8" else 2, shape, generator=draws, dtype=getattr(torch, form.dtype)
    )
