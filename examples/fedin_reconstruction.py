"""Images rebuilt from features, with noise on these and without (FedIN, Figure 10).

    python examples/fedin_reconstruction.py comparisons/fedin-table1-small/runs/fedin/seed-0 [STEPS]

The server has a client's model and its features s_in in front of the intermediate layers, and looks for the image that
has these: the minimum over x of the mean squared error of f(x; w_e) to s_in, by Adam from the mean image. Into
RUN/reconstruction go reconstruction.json and two pictures: how near it comes with the steps, for each level of noise in
standard deviations of the features, and the images. Nearness is the peak signal-to-noise ratio: high is near. The paper
has LPIPS, by a network that was trained on ImageNet and is not at hand here. Images are from the test set.
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
POINTS = 20
"""Points of the curve."""


def rebuilt(model: SplitModel, s_in: Tensor, shape: Sequence[int], steps: int) -> list[tuple[int, Tensor]]:
    """The images found after some of the steps, the last among them."""
    x = torch.zeros(len(s_in), *shape, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.05)
    found = []
    for step in range(1, steps + 1):
        loss = (model.run(x, "extractor") - s_in).square().mean()
        (x.grad,) = torch.autograd.grad(loss, [x])
        adam.step()
        if step % max(1, steps // POINTS) == 0 or step == steps:
            found.append((step, x.detach().clone()))
    return found


def signal_to_noise(x: Tensor, truth: Tensor) -> float:
    """10 log10 (range² / mean squared error), mean over the images."""
    error = (x - truth).square().flatten(1).mean(1)
    return float((10 * torch.log10((truth.max() - truth.min()).square() / error)).mean())


def main(run: Path, steps: int = 2000, levels: Sequence[float] = LEVELS) -> None:
    out = run / "reconstruction"
    out.mkdir(exist_ok=True)
    result = interfuse.load_run(run)
    dataset, model = load(result.config.data_names[0]), result.model(0).eval()
    truth = dataset.normalise(dataset.x_test[:IMAGES])
    with torch.no_grad():
        s_in = model.run(truth, "extractor")
    drawn = torch.randn(s_in.shape, generator=torch.Generator().manual_seed(0))
    curves = Figure(figsize=(6, 4), layout="constrained")
    axes = curves.add_subplot(xlabel="steps", ylabel="peak signal-to-noise ratio, dB")
    images, everything = [truth], {}
    for level in levels:
        found = rebuilt(model, s_in + level * s_in.std(correction=0) * drawn, truth.shape[1:], steps)
        ratios = [signal_to_noise(x, truth) for _, x in found]
        everything[f"{level:g}"] = {"steps": [step for step, _ in found], "decibels": ratios}
        axes.plot([step for step, _ in found], ratios, label=f"{level:g} σ")
        images.append(found[-1][1])
    axes.legend(fontsize=7)
    curves.savefig(out / "curves.png", dpi=150)
    grid = Figure(figsize=(IMAGES, len(images)), layout="constrained")
    low, high = truth.min(), truth.max()
    names = ["image", *(f"{level:g} σ" for level in levels)]
    for row, name, panels in zip(images, names, grid.subplots(len(images), IMAGES), strict=True):
        panels[0].set_ylabel(name)
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
