"""Programs and ONNX of artefacts beside the live module: the largest difference of an answer, for models of the zoo.

    python benchmarks/exported_models.py                 # all of them, 1,000 samples each
    python benchmarks/exported_models.py cnn residual    # some

A base and a modular block are exported as `interfuse export --onnx` does, read again, and composed; so are their ONNX
by onnxruntime. "Stranger" is a module of no zoo, with batch normalisation and attention, cut by `split_at`. What cannot
be exported is named with its reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from interfuse.artefacts import Program, TensorForm, export_program
from interfuse.artefacts.onnx import write_onnx
from interfuse.data.inputs import ONLY
from interfuse.errors import InterfuseError
from interfuse.models import SplitModel, available, resolve, split_at

SHAPE, CLASSES, WIDTH, BATCH = (3, 32, 32), 10, 64, 100


@dataclass(frozen=True)
class Row:
    """What was found of one model.

    Attributes:
        largest: The largest magnitude of a score of the live module.
        features, program, onnx: Largest differences: of features and of scores of the programs, of scores of ONNX.
        agree: Samples of which all three name the same class, of all.
    """

    model: str
    largest: str
    features: str
    program: str
    onnx: str
    agree: str


class Stranger(nn.Module):
    """What somebody else may bring."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.normalisation = nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16)
        self.attention, self.norm = nn.MultiheadAttention(16, 4, batch_first=True), nn.LayerNorm(16)
        self.cut, self.last = nn.Linear(16, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.normalisation(self.convolution(x))).flatten(2).transpose(1, 2)
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0]).mean(1)
        found: Tensor = self.last(torch.relu(self.cut(h)))
        return found


def stranger(*_: object) -> SplitModel:
    """Cut behind its layer ``cut``."""
    return split_at(Stranger(), "cut")


def settled(model: SplitModel, x: Tensor) -> None:
    """Statistics of normalisation as of a model that was trained a little."""
    model.train()
    with torch.no_grad():
        for piece in torch.split(x[:64], 32):
            model(piece)
    model.eval()


def compared(name: str, build: Callable[..., SplitModel], samples: int) -> Row:
    """One model, live and exported.

    Raises:
        InterfuseError: it cannot be exported.
    """
    torch.manual_seed(0)
    model, x = build(SHAPE, CLASSES, WIDTH), torch.randn(samples, *SHAPE)
    settled(model, x)
    with torch.no_grad():
        pieces = [(model.base(piece), model(piece)) for piece in torch.split(x, BATCH)]
    z, scores = (torch.cat(part) for part in zip(*pieces, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        base, base_onnx = exported(_Part(model.base), x[:2], Path(folder) / "base.onnx")
        modular, modular_onnx = exported(_Part(model.modular), z[:2], Path(folder) / "modular.onnx")
    features = torch.cat([as_tensor(base(piece)) for piece in torch.split(x, BATCH)])
    answers = torch.cat([as_tensor(modular(piece)) for piece in torch.split(features, BATCH)])
    by_onnx = torch.cat([modular_onnx(base_onnx(piece)) for piece in torch.split(x, BATCH)])
    agree = (scores.argmax(1) == answers.argmax(1)) & (scores.argmax(1) == by_onnx.argmax(1))
    return Row(
        name, f"{float(scores.abs().max()):.3g}", far(features, z), far(answers, scores), far(by_onnx, scores),
        f"{int(agree.sum()):,} of {samples:,}",
    )  # fmt: skip


class _Part(nn.Module):
    """A part of a model as a module of its own."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def exported(module: nn.Module, example: Tensor, path: Path) -> tuple[Program, Callable[[Tensor], Tensor]]:
    """A program that was written and read, and ONNX by onnxruntime."""
    made = export_program(module, example)
    program = Program.of_text(made.text(), made.tensors)
    write_onnx(program, {ONLY: TensorForm.model_validate({"dtype": "float32", "shape": example.shape[1:]})}, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return program, lambda x: torch.from_numpy(session.run(None, {ONLY: x.numpy()})[0])


def as_tensor(found: object) -> Tensor:
    """The only output."""
    assert isinstance(found, Tensor)
    return found


def far(one: Tensor, other: Tensor) -> str:
    """The largest difference; "equal bits" where there is none."""
    return "equal bits" if torch.equal(one, other) else f"{float((one - other).abs().max()):.1e}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a model could not be exported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="Names of the zoo, or stranger; default: all.")
    parser.add_argument("--samples", type=int, default=1000)
    given = parser.parse_args(arguments)
    refused = 0
    print("| model | largest score | features, program | scores, program | scores, ONNX | same class by all three |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in given.models or ["stranger", *(info.name for info in available())]:
        try:
            row = compared(name, stranger if name == "stranger" else resolve(name), given.samples)
            print(f"| {' | '.join(vars(row).values())} |", flush=True)
        except InterfuseError as error:
            refused += 1
            print(f"| {name} | refused: {error} |", flush=True)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
