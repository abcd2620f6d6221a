"""The data sets that interfuse knows by name: their files, places of origin and facts; hashes are in ``registry.txt``.

SHA-256 of files that nobody could download while this was written are those that TensorFlow Datasets and torchvision
publish: the archives of CIFAR, SVHN's, USPS's two texts. That of Tiny ImageNet is what several public repositories
independently record, one of them beside its size, 248,100,043 bytes, and the MD5 that most tools check.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, Int16

from interfuse.data.bbc_news import BBC_NEWS
from interfuse.data.easy_vqa import EASY_VQA
from interfuse.data.fetch import RemoteFile, registered
from interfuse.data.formats import (
    Reader,
    read_cifar,
    read_cifar_archive,
    read_har_archive,
    read_idx,
    read_libsvm_images,
    read_mat,
    read_npz,
)
from interfuse.data.instructions import INSTRUCTIONS
from interfuse.data.recordings import ACTIVITIES, by_person, official_people
from interfuse.data.sources import DIGIT_NAMES, Labels, Layout, Rows, Source, Split, every_fifth
from interfuse.data.task_sets import TaskSet
from interfuse.data.tiny_imagenet import arranged, read_tiny_imagenet

_SHA256 = registered(Path(__file__).with_name("registry.txt"))


def _file(folder: str, name: str, read: Reader, *bases: str, elsewhere: str = "") -> RemoteFile:
    unpacked = _SHA256.get(f"{folder}/{Path(name).stem}")
    return RemoteFile(folder, elsewhere, name, _SHA256[f"{folder}/{name}"], unpacked, bases, read)


def _idx_files(folder: str, elsewhere: str, *bases: str) -> tuple[RemoteFile, ...]:
    """Images and labels to train on, then images and labels of the test."""
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(_file(folder, f"{stem}-ubyte.gz", read_idx, *bases, elsewhere=elsewhere) for stem in stems)


_MNIST = _idx_files(
    "mnist",
    "MNIST/raw",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

_FASHION_MNIST = _idx_files(
    "fashion-mnist",
    "FashionMNIST/raw",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
_FASHION_NAMES = "T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"

_KMNIST = _idx_files("kmnist", "KMNIST/raw", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/")
_KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_KMNIST_LICENCE = 'CC BY-SA 4.0 ("KMNIST Dataset", created by CODH, adapted from "Kuzushiji Dataset", NIJL and others)'

_CIFAR_BASE = "https://www.cs.toronto.edu/~kriz/"

_CIFAR_10_STEMS = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_CIFAR_10_MEMBERS = [f"cifar-10-batches-bin/{stem}.bin" for stem in _CIFAR_10_STEMS]
_CIFAR_10 = _file(
    "cifar-10",
    "cifar-10-binary.tar.gz",
    read_cifar_archive(_CIFAR_10_MEMBERS[:-1], _CIFAR_10_MEMBERS[-1], label_bytes=1),
    _CIFAR_BASE,
)
_CIFAR_10_BATCHES = tuple(
    _file("cifar-10", f"{stem}.bin.xz", read_cifar, elsewhere="cifar-10-batches-bin") for stem in _CIFAR_10_STEMS
)
_CIFAR_10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"

_CIFAR_100 = _file(
    "cifar-100",
    "cifar-100-binary.tar.gz",
    read_cifar_archive(["cifar-100-binary/train.bin"], "cifar-100-binary/test.bin", label_bytes=2),
    _CIFAR_BASE,
)

_CIFAR_100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

_TINY_IMAGENET = _file(
    "tiny-imagenet",
    "tiny-imagenet-200.zip",
    read_tiny_imagenet,
    "https://cs231n.stanford.edu/",
    "http://cs231n.stanford.edu/",
)

_SVHN = tuple(
    _file("svhn", name, read_mat("X", "y"), "http://ufldl.stanford.edu/housenumbers/")
    for name in ("train_32x32.mat", "test_32x32.mat")
)

_USPS = tuple(
    _file("usps", name, read_libsvm_images, "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/")
    for name in ("usps.bz2", "usps.t.bz2")
)
_USPS_ARRAYS = _file("usps", "usps.npz", read_npz("X_train", "y_train", "X_test", "y_test"))

_HAR = (
    _file(
        "har",
        "human+activity+recognition+using+smartphones.zip",
        read_har_archive,
        "https://archive.ics.uci.edu/static/public/240/",
    ),
    _file("har", "UCI HAR Dataset.zip", read_har_archive),
    _file("har", "uci_har_inertial_signals.npz", read_npz("X", "y", "subject")),
)
_HAR_LICENCE = "CC BY 4.0 at UCI; the notice in the archive forbids commercial use (D. Anguita et al., ESANN 2013)"


def _whole_batches(*arrays: np.ndarray) -> Split:
    """CIFAR-10's batches, images and labels by turns; the last is the test batch."""
    *train, x_test, y_test = arrays
    return Split(np.concatenate(train[::2]), np.concatenate(train[1::2]), x_test, y_test)


def _upright_digits(x: Rows, y: Labels, x_test: Rows, y_test: Labels) -> Split:
    """SVHN: height, width, channel, image; a column of labels in which 10 is the digit 0."""
    return Split(x.transpose(3, 2, 0, 1), y[:, 0] % 10, x_test.transpose(3, 2, 0, 1), y_test[:, 0] % 10)


def _from_thousandths(x: Rows, y: Labels, x_test: Rows, y_test: Labels) -> Split:
    """USPS: grey values between -1 and 1 in thousandths to values between 0 and 1."""

    def scaled(values: Int16[np.ndarray, "n 16 16"]) -> Float32[np.ndarray, "n 16 16"]:
        return ((values.astype(np.float32) + 1000) / 2000).astype(np.float32)

    return Split(scaled(x), y, scaled(x_test), y_test)


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            Source(
                name="mnist",
                layouts=(Layout(_MNIST),),
                shape=(1, 28, 28),
                class_names=DIGIT_NAMES,
                rows_train=60_000,
                rows_test=10_000,
                licence="CC BY-SA 3.0 (Y. LeCun, C. Cortes, C. J. C. Burges)",
                mean=(0.1307,),
                std=(0.3081,),
            ),
            Source(
                name="fashion-mnist",
                layouts=(Layout(_FASHION_MNIST),),
                shape=(1, 28, 28),
                class_names=tuple(_FASHION_NAMES.split(", ")),
                rows_train=60_000,
                rows_test=10_000,
                licence="MIT (Zalando SE)",
                mean=(0.2860,),
                std=(0.3530,),
            ),
            Source(
                name="kmnist",
                layouts=(Layout(_KMNIST),),
                shape=(1, 28, 28),
                class_names=_KMNIST_NAMES,
                rows_train=60_000,
                rows_test=10_000,
                licence=_KMNIST_LICENCE,
            ),
            Source(
                name="kmnist-test",
                layouts=(Layout(_KMNIST[2:], every_fifth),),
                shape=(1, 28, 28),
                class_names=_KMNIST_NAMES,
                rows_train=8_000,
                rows_test=2_000,
                licence=_KMNIST_LICENCE,
                mean=(0.1846,),
                std=(0.3416,),
                note="a split of KMNIST's official test half; not comparable with published KMNIST numbers",
            ),
            Source(
                name="cifar-10",
                layouts=(Layout((_CIFAR_10,)), Layout(_CIFAR_10_BATCHES, _whole_batches)),
                shape=(3, 32, 32),
                class_names=tuple(_CIFAR_10_NAMES.split()),
                rows_train=50_000,
                rows_test=10_000,
                licence="not stated (A. Krizhevsky, 2009; the authors ask to be cited)",
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.2470, 0.2435, 0.2616),
            ),
            Source(
                name="cifar-100",
                layouts=(Layout((_CIFAR_100,)),),
                shape=(3, 32, 32),
                class_names=tuple(_CIFAR_100_NAMES.split()),
                rows_train=50_000,
                rows_test=10_000,
                licence="not stated (A. Krizhevsky, 2009; the authors ask to be cited)",
            ),
            Source(
                name="tiny-imagenet",
                layouts=(Layout((_TINY_IMAGENET,), arranged),),
                shape=(3, 64, 64),
                class_names=200,
                rows_train=100_000,
                rows_test=10_000,
                licence="not stated; images of ImageNet, for research and education that are not commercial",
                mean=(0.4802, 0.4481, 0.3975),
                std=(0.2770, 0.2691, 0.2821),
                note="test rows are the official validation images, since the official test images have no labels; "
                "grey images have three equal channels",
            ),
            Source(
                name="svhn",
                layouts=(Layout(_SVHN, _upright_digits),),
                shape=(3, 32, 32),
                class_names=DIGIT_NAMES,
                rows_train=73_257,
                rows_test=26_032,
                licence="not stated, for non-commercial use (Y. Netzer et al., 2011)",
                note="cropped digits without the extra training images",
            ),
            Source(
                name="usps",
                layouts=(Layout(_USPS, _from_thousandths), Layout((_USPS_ARRAYS,), _from_thousandths)),
                shape=(1, 16, 16),
                class_names=DIGIT_NAMES,
                rows_train=7_291,
                rows_test=2_007,
                licence="not stated (Y. LeCun et al., 1989; T. Hastie, R. Tibshirani, J. Friedman)",
            ),
            Source(
                name="har",
                layouts=tuple(Layout((file,), official_people) for file in _HAR),
                shape=(9, 128),
                class_names=ACTIVITIES,
                rows_train=7_352,
                rows_test=2_947,
                licence=_HAR_LICENCE,
                note="raw inertial signals; natural clients are the 21 people of the official training half, the test "
                "set is the other nine",
            ),
            Source(
                name="har-people",
                layouts=tuple(Layout((file,), by_person) for file in _HAR),
                shape=(9, 128),
                class_names=ACTIVITIES,
                rows_train=7_789,
                rows_test=1_667,
                licence=_HAR_LICENCE,
                note="raw inertial signals; natural clients are all 30 people, the test set is the last fifth of "
                "every recording; not comparable with published numbers for the official split",
            ),
        )
    }
)

TASK_SETS: Mapping[str, TaskSet] = MappingProxyType({made.name: made for made in (*EASY_VQA, *BBC_NEWS, *INSTRUCTIONS)})
