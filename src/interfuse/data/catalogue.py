"""The data sets that interfuse knows by name: their files, hashes, places of origin and facts.

SHA-256 of files that nobody could download while this was written are those that TensorFlow Datasets and torchvision
publish: the archives of CIFAR, SVHN's, USPS's two texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, Int16

from interfuse.data.fetch import RemoteFile
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
from interfuse.data.recordings import by_person, official_people
from interfuse.data.sources import DIGIT_NAMES, Labels, Layout, Rows, Source, Split, every_fifth


def _idx_files(
    folder: str, elsewhere: str, bases: tuple[str, ...], hashes: Mapping[str, tuple[str, str | None]]
) -> dict[str, RemoteFile]:
    return {
        stem: RemoteFile(folder, elsewhere, f"{stem}-ubyte.gz", sha256, unpacked, bases, read_idx)
        for stem, (sha256, unpacked) in hashes.items()
    }


_MNIST = _idx_files(
    "mnist",
    "MNIST/raw",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    {
        "train-images-idx3": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)

_FASHION_MNIST = _idx_files(
    "fashion-mnist",
    "FashionMNIST/raw",
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    {
        "train-images-idx3": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)

_KMNIST = _idx_files(
    "kmnist",
    "KMNIST/raw",
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    {
        "train-images-idx3": ("51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", None),
        "train-labels-idx1": (
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "2a16eeae62da984b8bd24fa32e31d47291f01dac3fe84d5594f304f71e7d374b",
        ),
        "t10k-images-idx3": (
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e",
        ),
        "t10k-labels-idx1": (
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
            "a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6",
        ),
    },
)

_KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_KMNIST_LICENCE = 'CC BY-SA 4.0 ("KMNIST Dataset", created by CODH, adapted from "Kuzushiji Dataset", NIJL and others)'

_CIFAR_BASE = ("https://www.cs.toronto.edu/~kriz/",)

_CIFAR_10 = RemoteFile(
    "cifar-10",
    "",
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    None,
    _CIFAR_BASE,
    read_cifar_archive(
        [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
        "cifar-10-batches-bin/test_batch.bin",
        label_bytes=1,
    ),
)

_CIFAR_10_BATCHES = tuple(
    RemoteFile("cifar-10", "cifar-10-batches-bin", f"{stem}.bin.xz", packed, unpacked, (), read_cifar)
    for stem, packed, unpacked in (
        (
            "data_batch_1",
            "05dc5fe09eb23af23d8cdc4c0afc27125702a4bd1c9101b17f7be474b58e29c7",
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        ),
        (
            "data_batch_2",
            "9408d65b03160954798b117ebee9819a2368881713199df59ffb6843569753a2",
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        ),
        (
            "data_batch_3",
            "fa9d2e124c5ad29c6affb87c6b1ae2b597d1c444b8dffddc640b040fb2edb61a",
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        ),
        (
            "data_batch_4",
            "9c7c6acd603162f0e5069601652fd683d3a0c2457de630f803386e9b98c9eafd",
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        ),
        (
            "data_batch_5",
            "467b11d5c55692292fa6d4f9c0829919e72266ec9bc6cf065fa2b28350cbccd2",
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
        (
            "test_batch",
            "a596cd4947d3e8a1c368733d09a65f89c003a5a6b0376161a498e83631674e9d",
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
    )
)

_CIFAR_100 = RemoteFile(
    "cifar-100",
    "",
    "cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    None,
    _CIFAR_BASE,
    read_cifar_archive(["cifar-100-binary/train.bin"], "cifar-100-binary/test.bin", label_bytes=2),
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

_SVHN = tuple(
    RemoteFile("svhn", "", name, sha256, None, ("http://ufldl.stanford.edu/housenumbers/",), read_mat("X", "y"))
    for name, sha256 in (
        ("train_32x32.mat", "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        ("test_32x32.mat", "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    )
)

_USPS = tuple(
    RemoteFile(
        "usps",
        "",
        name,
        sha256,
        None,
        ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",),
        read_libsvm_images,
    )
    for name, sha256 in (
        ("usps.bz2", "3771e9dd6ba685185f89867b6e249233dd74652389f263963b3b741e994b034f"),
        ("usps.t.bz2", "a9c0164e797d60142a50604917f0baa604f326e9a689698763793fa5d12ffc4e"),
    )
)

_USPS_ARRAYS = RemoteFile(
    "usps",
    "",
    "usps.npz",
    "11f7918d3fc23992872c7f77e28ceaea51fe880cbe4e55af20acae85ae96f418",
    None,
    (),
    read_npz("X_train", "y_train", "X_test", "y_test"),
)


def _har_file(name: str, sha256: str, read: Reader, *bases: str) -> RemoteFile:
    return RemoteFile("har", "", name, sha256, None, bases, read)


_HAR = (
    _har_file(
        "human+activity+recognition+using+smartphones.zip",
        "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031",
        read_har_archive,
        "https://archive.ics.uci.edu/static/public/240/",
    ),
    _har_file(
        "UCI HAR Dataset.zip",
        "2045e435c955214b38145fb5fa00776c72814f01b203fec405152dac7d5bfeb0",
        read_har_archive,
    ),
    _har_file(
        "uci_har_inertial_signals.npz",
        "5742835c9dc0e37ba5de2e4287b3b94ea7434abbfb14556777ba1a0ef9375032",
        read_npz("X", "y", "subject"),
    ),
)

_HAR_NAMES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
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
                layouts=(Layout(tuple(_MNIST.values())),),
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
                layouts=(Layout(tuple(_FASHION_MNIST.values())),),
                shape=(1, 28, 28),
                class_names=(
                    "T-shirt/top",
                    "trouser",
                    "pullover",
                    "dress",
                    "coat",
                    "sandal",
                    "shirt",
                    "sneaker",
                    "bag",
                    "ankle boot",
                ),
                rows_train=60_000,
                rows_test=10_000,
                licence="MIT (Zalando SE)",
                mean=(0.2860,),
                std=(0.3530,),
            ),
            Source(
                name="kmnist",
                layouts=(Layout(tuple(_KMNIST.values())),),
                shape=(1, 28, 28),
                class_names=_KMNIST_NAMES,
                rows_train=60_000,
                rows_test=10_000,
                licence=_KMNIST_LICENCE,
            ),
            Source(
                name="kmnist-test",
                layouts=(Layout((_KMNIST["t10k-images-idx3"], _KMNIST["t10k-labels-idx1"]), every_fifth),),
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
                class_names=(
                    "airplane",
                    "automobile",
                    "bird",
                    "cat",
                    "deer",
                    "dog",
                    "frog",
                    "horse",
                    "ship",
                    "truck",
                ),
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
                class_names=_HAR_NAMES,
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
                class_names=_HAR_NAMES,
                rows_train=7_789,
                rows_test=1_667,
                licence=_HAR_LICENCE,
                note="raw inertial signals; natural clients are all 30 people, the test set is the last fifth of "
                "every recording; not comparable with published numbers for the official split",
            ),
        )
    }
)
