"""Data sets (found, downloaded, verified, cached) and their division between clients."""

from interfuse.data.batches import Batch, ClientData, EpochOrder, PublicData, SampleOrder
from interfuse.data.dataset import Dataset, Normalisation, stratified_subset
from interfuse.data.inputs import Inputs, Shape
from interfuse.data.loading import available, load
from interfuse.data.own import TABLES, load_folder, load_table
from interfuse.data.partitions import (
    IID,
    PARTITIONS,
    Dirichlet,
    Natural,
    Partition,
    Pathological,
    Shards,
    Share,
    class_counts,
    deal,
    make_shares,
    parse_partition,
)
from interfuse.data.sources import DatasetInfo
from interfuse.data.task import (
    Classification,
    LanguageModelling,
    MultiLabel,
    QuestionAnswering,
    Regression,
    Sizes,
    Task,
)

__all__ = [
    "IID",
    "PARTITIONS",
    "TABLES",
    "Batch",
    "Classification",
    "ClientData",
    "Dataset",
    "DatasetInfo",
    "Dirichlet",
    "EpochOrder",
    "Inputs",
    "LanguageModelling",
    "MultiLabel",
    "Natural",
    "Normalisation",
    "Partition",
    "Pathological",
    "PublicData",
    "QuestionAnswering",
    "Regression",
    "SampleOrder",
    "Shape",
    "Shards",
    "Share",
    "Sizes",
    "Task",
    "available",
    "class_counts",
    "deal",
    "load",
    "load_folder",
    "load_table",
    "make_shares",
    "parse_partition",
    "stratified_subset",
]
