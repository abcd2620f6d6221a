"""The picture of samples that clients drew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_run import FakeRun, write_run
from torch import Tensor

from interfuse.errors import RunError
from interfuse.evaluation import Pictures
from interfuse.report.plots import as_svg, save
from interfuse.report.run import load
from interfuse.report.samples import LARGEST_SIDE, as_lines, as_pixels, cells, samples_figure, samples_text
from interfuse.runs.drawn import Drawn, write_drawn
from interfuse.runs.folder import RunFolder


def pictures(clients: Sequence[int], classes: int, shape: tuple[int, ...], lacks: int = 0) -> dict[int, Pictures]:
    """Noise: each client lacks the first so many classes."""
    made = torch.Generator().manual_seed(0)

    def noise(rows: int) -> Tensor:
        return torch.randint(256, (rows, *shape), generator=made, dtype=torch.uint8)

    y = torch.arange(classes)
    return {
        client: Pictures(noise(2 * classes), y.repeat_interleave(2), noise(classes - lacks), y[lacks:])
        for client in clients
    }


def test_the_picture_of_a_large_federation_stays_small(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(clients=400, classes=100, rounds=4), ())
    write_drawn(tmp_path, pictures([0, 100, 200, 300], 10, (3, 224, 224), lacks=3))
    run = load(tmp_path)
    assert len(as_svg(samples_figure(run.drawn, run.summary.class_names), "samples")) < 2.5e6
    text = samples_text(run.drawn, run.summary.class_names, 400)
    assert text.startswith("Samples of 10 of 100 classes by 4 of 400 clients")
    assert text.count("client 100") == 1


def test_cells_are_in_the_row_of_their_class_and_framed_where_it_was_never_seen(tmp_path: Path) -> None:
    write_drawn(tmp_path, pictures([3, 5], 4, (1, 6, 6), lacks=1))
    drawn = RunFolder(tmp_path).drawn()
    found = list(cells(drawn))
    assert len(found) == 2 * 4 * 3
    assert [cell.unseen for cell in found] == [cell.row == 0 for cell in found]
    assert [cell.sample is None for cell in found] == [cell.row == 0 and i % 3 == 0 for i, cell in enumerate(found)]
    third = found[3 * 2 + 1]
    assert third.sample is not None
    assert torch.equal(third.sample, drawn[0].drawn[4])
    axes = samples_figure(drawn, [str(c) for c in range(4)]).axes[0]
    assert len(axes.images) == 2 * (4 * 3 - 1)
    assert len(axes.patches) == 2 * 2
    assert sum(text.get_text() == "–" for text in axes.texts) == 2
    shown = [image for image in axes.images if next(iter(image.get_extent())) == third.x]
    assert np.array_equal(np.asarray(shown[2].get_array()), drawn[0].drawn[4][0].numpy().astype(np.float32) / 255)


@pytest.mark.parametrize("shape", [(7,), (4, 9), (1, 6, 6)])
def test_the_same_samples_give_the_same_bytes(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_drawn(tmp_path, pictures([0, 1], 2, shape))
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        save(samples_figure(RunFolder(tmp_path).drawn(), ["a", "b"]), tmp_path / name, "samples", paper=False)
    for kind in ("svg", "png"):
        once, again = ((tmp_path / name / f"samples.{kind}").read_bytes() for name in ("once", "again"))
        assert once == again


def test_pixels_and_lines_are_those_of_the_sample() -> None:
    grey = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    assert as_pixels(grey).tolist() == pytest.approx(np.array([[0, 1], [0.2, 0.4]]))
    colours = torch.zeros(3, 5, 7, dtype=torch.uint8)
    colours[2] = 255
    assert as_pixels(colours).shape == (5, 7, 3)
    assert as_pixels(colours)[0, 0].tolist() == [0, 0, 1]
    assert as_pixels(grey, white=102).tolist() == pytest.approx(np.array([[0, 1], [0.5, 1]]))  # others go to 16
    assert as_pixels(torch.rand(3, 300, 20)).shape == (LARGEST_SIDE, 20, 3)
    assert as_pixels(torch.full((2, 4, 4), 7.0)).tolist() == [[0.0] * 4] * 4, "no spread is no error"
    ramp = torch.arange(1000.0).expand(9, 1000)
    assert as_lines(ramp).shape == (3, 64)
    assert as_lines(ramp)[0, [0, -1]].tolist() == [0, 999]
    assert as_lines(torch.arange(5.0)).tolist() == [[0, 1, 2, 3, 4]]
    constant = Drawn(
        0, torch.zeros(1, 2, 6), torch.tensor([0]), torch.zeros(0, 2, 6), torch.tensor([], dtype=torch.int64)
    )
    assert len(samples_figure([constant], ["a"]).axes[0].collections) == 2


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "drawn.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match=r"drawn.safetensors is damaged: .* delete it"):
        load(tmp_path)
    write_drawn(tmp_path, {})
    assert load(tmp_path).drawn == ()
