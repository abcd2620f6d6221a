"""Features between two blocks, by codec: their bytes, what they cost in accuracy, and what they tell of the picture.

    python benchmarks/features_at_inference.py ARTEFACTS SAMPLES.npz

ARTEFACTS is a folder of artefacts, SAMPLES.npz has the arrays x_test and y_test. Every base block goes with every
modular block. The attack is that of whoever runs a modular block, may ask the base block for features of pictures of
its own, and wants the pictures behind the features of others: a ridge regression from features to pictures, learnt on
the first half of the samples and tried on the second. Nearness is the peak signal-to-noise ratio over the range of
the pictures; the mean picture is what is guessed without features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import table
from interfuse import artefacts
from interfuse.artefacts import Artefact
from interfuse.serve.bodies import as_safetensors
from interfuse.wire import Codec

CODECS = ("none", "fp16", "int8", "int8+zstd", "int4+zstd", "int2+zstd", "topk:0.1+int8+zstd")
PENALTY = 0.01
"""Of the regression, in parts of the mean variance of features."""


def features_of(base: Artefact, x: Tensor) -> Tensor:
    """Of a base block with one output."""
    found = base(x)
    assert isinstance(found, Tensor)
    return found


def decoded(known: Tensor, pictures: Tensor, wanted: Tensor) -> Tensor:
    """Pictures behind wanted features, by a ridge regression of known pictures on known features."""
    z, mean, centre = known.flatten(1).double(), known.flatten(1).double().mean(0), pictures.flatten(1).double().mean(0)
    gram = (z - mean).T @ (z - mean)
    penalty = PENALTY * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.linalg.solve(gram + penalty, (z - mean).T @ (pictures.flatten(1).double() - centre))
    found: Tensor = (wanted.flatten(1).double() - mean) @ weights + centre
    return found


def decibels(found: Tensor, truth: Tensor) -> float:
    """Mean peak signal-to-noise ratio of pictures."""
    error = (found - truth.flatten(1).double()).square().mean(1).clamp(min=1e-12)
    span = float(truth.max()) - float(truth.min())
    return float((10 * torch.log10(span**2 / error)).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefacts", type=Path)
    parser.add_argument("samples", type=Path)
    given = parser.parse_args(arguments)
    found = [artefacts.load(path) for path in sorted(given.artefacts.iterdir())]
    bases, modulars = ([one for one in found if one.manifest.part == part] for part in ("base", "modular"))
    with np.load(given.samples, allow_pickle=False) as file:
        x, y = torch.from_numpy(file["x_test"]), torch.from_numpy(file["y_test"])
    half = len(x) // 2
    pictures = x.double()
    mean = pictures[:half].flatten(1).mean(0).expand(len(x) - half, -1)
    rows = []
    for text in CODECS:
        codec, right, sizes, told = Codec.parse(text), [], [], []
        for base in bases:
            z = codec.round(features_of(base, x), torch.Generator().manual_seed(0))
            fusion = base.manifest.fusion
            assert fusion is not None
            file_of_one = as_safetensors({"x": z[:1]}, {"contract": fusion.key}, codec)
            sizes.append(len(file_of_one))
            told.append(decibels(decoded(z[:half], pictures[:half], z[half:]), pictures[half:]))
            for modular in modulars:
                artefacts.check_fit(base, modular)
                right.append(float((artefacts.mean_of([modular], z).argmax(1) == y).double().mean()))
        rows.append({
            "codec": text, "bytes": f"{min(sizes):,}–{max(sizes):,}", "mean": f"{100 * np.mean(right):.2f}",
            "worst": f"{100 * min(right):.2f}", "told": f"{min(told):.1f}–{max(told):.1f}",
        })  # fmt: skip
    columns = {
        "codec": "codec", "bytes": "bytes of one sample's features, as a file", "mean": "accuracy, mean, %",
        "worst": "worst composition, %", "told": "decoder, dB, by base block",
    }  # fmt: skip
    print(table(rows, columns))
    means: tuple[artefacts.Mean, ...] = ("scores", "probabilities")
    for what in means:
        together = [artefacts.mean_of(modulars, features_of(base, x), what).argmax(1) == y for base in bases]
        accuracies = [100 * float(hits.double().mean()) for hits in together]
        print(f"\nall modular blocks, mean of {what}: mean {np.mean(accuracies):.2f} %, worst {min(accuracies):.2f} %")
    guessed = decibels(mean, pictures[half:])
    print(
        f"\n{len(bases)} base and {len(modulars)} modular blocks, {len(x)} samples; the mean picture: {guessed:.1f} dB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
