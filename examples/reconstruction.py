"""Images rebuilt from the features that a client uploads, with noise on these and without.

    python examples/reconstruction.py RUN [STEPS]

RUN is a run folder of a method whose clients share features: `ifl` (z, behind the base block) or `fedin` (s_in, in
front of the intermediate layers; Figure 10 of its paper). Two attacks on the features of client 0:

- search, by who knows its model up to there: the image whose features these are, the minimum over x of the mean squared
  error of f(x) to them, by Adam from the mean image, with pixels kept in range. IFL sends no weights;
- decoder, by who knows 1,992 other images and their features, and no weights: a ridge regression from these to those.

Into RUN/reconstruction go reconstruction.json and two pictures: how near the search comes with the steps, for each
level of noise in standard deviations of the features, and the images. Nearness is the peak signal-to-noise ratio:
high is near. FedIN's paper has LPIPS, by a network that was trained on ImageNet and is not at hand here. Beside it
stands what the noise costs: the accuracy of the rest of the model behind noised features. Rebuilt are the first 8
images of the test set, and accuracy is that of the first 2,000.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import interfuse
from interfuse.data import load
from interfuse.models import SplitModel

LEVELS = (0.0, 0.1, 0.2, 0.5, 0.8, 1.0, 2.0)
IMAGES = 8
KNOWN = 2000
"""Images of which accuracy is taken, and whose features the decoder learns from, but for those it rebuilds."""
POINTS = 20
"""Points of the curve."""


def rebuilt(
    model: SplitModel, features: Tensor, shape: Sequence[int], bounds: tuple[float, float], steps: int
) -> list[tuple[int, Tensor]]:
    """The images found after some of the steps, the last among them, with pixels within the bounds."""
    x = torch.zeros(len(features), *shape, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.05)
    found = []
    for step in range(1, steps + 1):
        loss = (model.run(x, model.part_names[0]) - features).square().mean()
        (x.grad,) = torch.autograd.grad(loss, [x])
        adam.step()
        with torch.no_grad():
            x.clamp_(*bounds)
        if step % max(1, steps // POINTS) == 0 or step == steps:
            found.append((step, x.detach().clone()))
    return found


def decoded(features: Tensor, images: Tensor, wanted: Tensor) -> Tensor:
    """The images of the wanted features, by a ridge regression of images ``[n, ...]`` on features ``[n, ...]``."""
    z, x = features.flatten(1), images.flatten(1)
    mean, centre = z.mean(0), x.mean(0)
    gram = (z - mean).T @ (z - mean)
    penalty = 0.01 * gram.trace() / len(gram) * torch.eye(len(gram))
    weights = torch.linalg.solve(gram + penalty, (z - mean).T @ (x - centre))
    return ((wanted.flatten(1) - mean) @ weights + centre).view(len(wanted), *images.shape[1:])


def signal_to_noise(x: Tensor, truth: Tensor) -> float:
    """10 log10 (range² / mean squared error), mean over the images."""
    error = (x - truth).square().flatten(1).mean(1)
    return float((10 * torch.log10((truth.max() - truth.min()).square() / error)).mean())


def accuracy(model: SplitModel, features: Tensor, labels: Tensor) -> float:
    """Of all parts behind the first, on its outputs."""
    for part in model.part_names[1:]:
        features = model.run(features, part)
    return float((features.argmax(1) == labels).double().mean())


def main(run: Path, steps: int = 2000, levels: Sequence[float] = LEVELS) -> None:
    out = run / "reconstruction"
    out.mkdir(exist_ok=True)
    result = interfuse.load_run(run)
    dataset, model = load(result.config.data_names[0]), result.model(0).eval()
    known = dataset.normalise(dataset.x_test[:KNOWN])
    truth = known[:IMAGES]
    with torch.no_grad():
        features = model.run(known, model.part_names[0])
    spread = features.std(correction=0) * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    curves = Figure(figsize=(6, 4), layout="constrained")
    axes = curves.add_subplot(xlabel="steps", ylabel="peak signal-to-noise ratio, dB")
    bounds = float(truth.min()), float(truth.max())
    rows, everything = {"image": truth}, {}
    print(f"the mean image: {signal_to_noise(known[IMAGES:].mean(0).expand_as(truth), truth):.1f} dB")
    for level in levels:
        noised = features + level * spread
        found = rebuilt(model, noised[:IMAGES], truth.shape[1:], bounds, steps)
        ratios = [signal_to_noise(x, truth) for _, x in found]
        by_decoder = decoded(noised[IMAGES:], known[IMAGES:], noised[:IMAGES]).clamp(*bounds)
        with torch.no_grad():
            kept = accuracy(model, noised, dataset.y_test[:KNOWN])
        decoder = signal_to_noise(by_decoder, truth)
        print(
            f"noise of {level:g} σ: search {ratios[-1]:.1f} dB, decoder {decoder:.1f} dB, accuracy {100 * kept:.1f} %"
        )
        steps_of = [step for step, _ in found]
        everything[f"{level:g}"] = {"steps": steps_of, "decibels": ratios, "decoder": decoder, "accuracy": kept}
        axes.plot(steps_of, ratios, label=f"{level:g} σ")
        rows |= {f"{level:g} σ,\nsearch": found[-1][1], f"{level:g} σ,\ndecoder": by_decoder}
    axes.legend(fontsize=7)
    curves.savefig(out / "curves.png", dpi=150)
    grid = Figure(figsize=(IMAGES, len(rows)), layout="constrained")
    low, high = bounds
    for (name, row), panels in zip(rows.items(), grid.subplots(len(rows), IMAGES), strict=True):
        panels[0].set_ylabel(name, fontsize=7)
        for image, panel in zip(row, panels, strict=False):
            pixels = ((image - low) / (high - low)).clamp(0, 1).movedim(0, -1).numpy()
            panel.imshow(pixels.mean(-1) if pixels.shape[-1] != 3 else pixels, cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
    grid.savefig(out / "images.png", dpi=100)
    (out / "reconstruction.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
