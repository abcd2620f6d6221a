"""Folders of images, with a subfolder for each class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interfuse.data.dataset import Dataset
from interfuse.data.reading import UNREADABLE, Reading, ReadOptions, listed
from interfuse.data.targets import alike, composed, in_order
from interfuse.data.task import Classification
from interfuse.errors import DataError
from interfuse.opening import opened

if TYPE_CHECKING:
    from PIL import Image

DEBRIS = frozenset(
    {
        "__macosx", "icon\r", "@eadir", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin",
        "system volume information", "lost+found",
    }
)  # fmt: skip
"""What file browsers and archives leave behind, in small letters; so do names that begin with a dot."""
TRAIN, TEST, VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".jp2"})
ORIENTATION = 0x0112
"""A tag of EXIF."""
SIXTEEN_BITS = re.compile(r"(RGBA?|LA|RGBX|CMYK);16")
"""In what Pillow calls the bits of a file whose image it holds with 8."""
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
"""What Pillow may take a file for: others, such as EPS, would start another program."""
MOST_PIXELS = 1 << 27
"""Of a picture. A file of some bytes can say that it has any number."""
EXACT = 2**24
"""Up to which float32 holds whole numbers."""


@dataclass
class Notes:
    """What was met on the way."""

    debris: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    validation: str = ""
    kinds: Counter[str] = field(default_factory=Counter)


def recognises(path: Path) -> bool:
    """Whether it is a folder in which, or two levels below, there is a file with the ending of an image."""
    if not path.is_dir():
        return False
    below = [folder for folder in path.iterdir() if folder.is_dir() and not _is_debris(folder)]
    inner = [folder for outer in below for folder in outer.iterdir() if folder.is_dir() and not _is_debris(folder)]
    return any(file.suffix.lower() in ENDINGS for folder in (path, *below, *inner) for file in folder.iterdir())


def load_folder(path: str | Path, classes: Sequence[str] | None = None) -> Dataset:
    """All images of a folder with a subfolder for each class, as training rows: grey or colour, all of one size.

    Subfolders ``train`` and ``test`` above those of the classes are training and test rows. ``val`` is the test set
    where there is no ``test``, else it is left out.

    Args:
        classes: The subfolders in the order of their numbers; None: those that are there, sorted.

    Raises:
        DataError: there are no images, a file is none or loses by being read, or they differ in size or kind.
    """
    return read(Path(path), ReadOptions(classes=None if classes is None else tuple(classes)))


def read(path: Path, options: ReadOptions) -> Dataset:
    """A folder as options say; see :func:`load_folder`."""
    options.only("classes", format="a folder of images")
    notes = Notes()
    parts = _parts(path, notes)
    files = [[file for folder in folders for file in _images_of(folder, notes)] for folders in parts]
    if not files[0]:
        raise DataError(f"{path} has no subfolders with images, one for each class")
    arrays = read_images([(str(file), file) for part in files for file in part], notes)
    x = [arrays[: len(files[0])], arrays[len(files[0]) :]]
    labels, held = ([composed(file.parent.name) for file in part] for part in files)
    strange = in_order({*held} - {*labels})
    if strange:
        raise DataError(f"{path}: the class {strange[0]!r} has test images, but there are none to train on")
    names = [composed(name) for name in options.classes] if options.classes is not None else in_order(labels)
    if unknown := in_order({*labels} - {*names}):
        raise DataError(f"{path} has the class {unknown[0]!r}, which is not among {listed(names)}")
    y, y_held = (np.array([names.index(name) for name in part], np.int64) for part in (labels, held))
    reading = Reading("folder of images")
    for kind, count in notes.kinds.items():
        reading = reading.saying("images", f"{count:,} {kind}")
    if notes.debris:
        count, called = len(notes.debris), listed(in_order(notes.debris))
        reading = reading.saying("left out", f"{called}: {count:,} hidden, or left by a file browser")
    if notes.empty:
        reading = reading.saying("left out", f"{listed(in_order(notes.empty))}: folders without images, so no class")
    if notes.loose:
        reading = reading.saying("left out", f"{listed(notes.loose)}: files beside the folders of classes")
    if parts[1]:
        reading = reading.saying("test rows", f"those below {listed(in_order(f.parent.name for f in parts[1]))}")
    if notes.validation:
        reading = reading.saying("left out", f"{notes.validation}: the test rows are those of test")
    if options.classes is None:
        reading = reading.saying("labels", alike(names))
    task = Classification(tuple(names))
    return Dataset.from_arrays(path.name, x[0], y, x[1], y_held, task=task, layout="images", reading=reading)


def _is_debris(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in DEBRIS


def _inside(folder: Path, notes: Notes) -> list[Path]:
    """What is in a folder, sorted, but for what file browsers left."""
    found = []
    for path in sorted(folder.iterdir()):
        if _is_debris(path):
            notes.debris.append(path.name)
        else:
            found.append(path)
    return found


def _parts(root: Path, notes: Notes) -> tuple[list[Path], list[Path]]:
    """The folders of classes of the training and of the test rows."""
    inside = _inside(root, notes)
    folders, loose = [p for p in inside if p.is_dir()], [p for p in inside if not p.is_dir()]
    images = [path.name for path in loose if path.suffix.lower() in ENDINGS]
    if images and folders:
        raise DataError(f"{root}: the image {images[0]} lies in no subfolder, so in no class; put it into one")
    notes.loose += [path.name for path in loose]
    train = [folder for folder in folders if folder.name.lower() in TRAIN]
    test = [folder for folder in folders if folder.name.lower() in TEST]
    validation = [folder for folder in folders if folder.name.lower() in VALIDATION]
    splits = [
        folder
        for folder in (*train, *test, *validation)
        if any(one.is_dir() and not _is_debris(one) for one in folder.iterdir())
    ]
    if not splits:
        deeper = [one for folder in folders for one in folder.iterdir() if one.is_dir() and not _is_debris(one)]
        if len(folders) == 1 and deeper:
            raise DataError(f"{root}: the folders of classes lie one level deeper; give {folders[0]}")
        return folders, []
    strange = [folder.name for folder in folders if folder not in (*train, *test, *validation)]
    if len(train) != 1 or strange:
        others = f"beside {strange[0]}" if strange else "without train" if not train else "twice"
        raise DataError(
            f"{root} has the folder {splits[0].name} of classes {others}: give a folder with train and test (or val), "
            "or one with a subfolder for each class"
        )
    if test and validation:
        notes.validation = listed([folder.name for folder in validation])
    found = []
    for side in (train, test or validation):
        classes = []
        for split in side:
            for path in _inside(split, notes):
                if path.is_dir():
                    classes.append(path)
                else:
                    raise DataError(f"{path} lies beside the folders of classes, so in no class; put it into one")
        found.append(classes)
    return found[0], found[1]


def _images_of(folder: Path, notes: Notes) -> list[Path]:
    files = _inside(folder, notes)
    if below := [file for file in files if file.is_dir()]:
        raise DataError(f"{below[0]} is a folder within the class {folder.name}: put its images into {folder}")
    if not files:
        notes.empty.append(folder.name)
    return files


def read_images(sources: Sequence[tuple[str, Path | BytesIO]], notes: Notes) -> np.ndarray:
    """Images ``[n, channels, height, width]``, uint8 or float32, of files or of their contents.

    Args:
        sources: Each with what errors call it.
        notes: Where kinds are counted.

    Raises:
        DataError: one cannot be read without loss, or they differ in size or kind.
    """
    arrays: list[np.ndarray] = []
    kinds: list[str] = []
    first = sources[0][0] if sources else ""
    for label, source in sources:
        array, kind = _read(label, source, notes)
        arrays.append(array)
        kinds.append(kind)
        if array.shape[1:] != arrays[0].shape[1:]:
            raise DataError(f"{label} has shape {array.shape[1:]}, but {first} {arrays[0].shape[1:]}; make them alike")
        if kind != kinds[0]:
            raise DataError(f"{label} is {kind}, but {first} is {kinds[0]}; make them alike")
    notes.kinds.update(kinds)
    return np.stack(arrays)


def _read(label: str, source: Path | BytesIO, notes: Notes) -> tuple[np.ndarray, str]:
    """An image ``[channels, height, width]`` and its kind in words."""
    from PIL import Image, ImageOps  # comes with Matplotlib, and is slow to import

    try:
        with ExitStack() as closing:
            file = source if isinstance(source, BytesIO) else closing.enter_context(opened(source))
            image = closing.enter_context(Image.open(file, formats=FORMATS))
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{label} says that it has {image.width} x {image.height} pixels: that is too many")
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{label} has several pictures in it; save each as a file of its own")
            depth = _bits_lost(image)
            turned = image.getexif().get(ORIENTATION, 1) not in (0, 1)
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{label} is no image that can be read: {error}") from error
    if depth:
        raise DataError(f"{label} has {depth}, which would be cut to 8; save it as grey, or as RGB of 8 bits")
    if turned:
        notes.kinds["turned as their EXIF orientation says"] += 1
    array, kind = _pixels(upright, label)
    return (array[np.newaxis] if array.ndim == 2 else np.moveaxis(array, -1, 0)), kind


def _bits_lost(image: Image.Image) -> str:
    """What of an image that is opened, and not loaded yet, Pillow would cut to 8 bits, in words."""
    tiles = getattr(image, "tile", ())
    if image.mode.startswith("I") or image.mode == "F" or not tiles:
        return ""
    tile = tiles[0]
    deep = tile.codec_name.startswith("ppm") and any(isinstance(one, int) and one > 255 for one in tile.args or ())
    return "16 bits a colour" if deep or SIXTEEN_BITS.search(str(tile.args)) else ""


def _pixels(image: Image.Image, label: str) -> tuple[np.ndarray, str]:
    grey = image.mode in ("1", "L", "LA")
    if image.mode in ("RGBA", "LA", "PA") or (image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info):
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise DataError(
                f"{label} (mode {image.mode}) has transparent pixels, whose colour is none; put it on a background"
            )
    elif image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        whole = image.mode != "F"
        if not np.isfinite(values).all() or (whole and np.abs(values.astype(np.int64)).max() > EXACT):
            raise DataError(f"{label} (mode {image.mode}) has values that float32 cannot hold")
        return values.astype(np.float32), "grey of 16 bits or more, kept as floats"
    elif not grey and image.mode not in ("P", "RGB"):
        raise DataError(f"{label} has mode {image.mode}, which is not read without loss; save it as grey or RGB")
    return np.asarray(image.convert("L" if grey else "RGB")), "grey" if grey else "RGB"
