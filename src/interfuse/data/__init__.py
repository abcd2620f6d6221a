"""Data sets (found, downloaded, verified, cached) and their division between clients."""

from interfuse.data.arrival import AT_ONCE, Tasks, arriving
from interfuse.data.batches import (
    Batch,
    ClientData,
    Drawn,
    EpochOrder,
    PublicData,
    SampleOrder,
    Sampling,
    spread,
    tasks_of,
)
from interfuse.data.dataset import Dataset, Normalise, stratified_subset
from interfuse.data.describing import DataFacts, describe, description, warnings_of
from interfuse.data.inputs import Inputs, Shape
from interfuse.data.loading import available, is_path, is_read, load, load_with
from interfuse.data.normalising import Normalisation
from interfuse.data.partitions import (
    IID,
    PARTITIONS,
    Dirichlet,
    Divide,
    Divided,
    Natural,
    Partition,
    Pathological,
    Shards,
    Share,
    Test,
    class_counts,
    deal,
    make_shares,
    parse_partition,
    testing_on_shares,
)
from interfuse.data.readers import format_of, read_path
from interfuse.data.readers.images import load_folder
from interfuse.data.readers.tables import load_table
from interfuse.data.reading import Layout, Reading, ReadOptions
from interfuse.data.sources import DatasetInfo
from interfuse.data.task import (
    Classification,
    LanguageModelling,
    MultiLabel,
    QuestionAnswering,
    Regression,
    Sizes,
    Task,
    numbered,
)

__all__ = [
    "AT_ONCE",
    "IID",
    "PARTITIONS",
    "Batch",
    "Classification",
    "ClientData",
    "DataFacts",
    "Dataset",
    "DatasetInfo",
    "Dirichlet",
    "Divide",
    "Divided",
    "Drawn",
    "EpochOrder",
    "Inputs",
    "LanguageModelling",
    "Layout",
    "MultiLabel",
    "Natural",
    "Normalisation",
    "Normalise",
    "Partition",
    "Pathological",
    "PublicData",
    "QuestionAnswering",
    "ReadOptions",
    "Reading",
    "Regression",
    "SampleOrder",
    "Sampling",
    "Shape",
    "Shards",
    "Share",
    "Sizes",
    "Task",
    "Tasks",
    "Test",
    "arriving",
    "available",
    "class_counts",
    "deal",
    "describe",
    "description",
    "format_of",
    "is_path",
    "is_read",
    "load",
    "load_folder",
    "load_table",
    "load_with",
    "make_shares",
    "numbered",
    "parse_partition",
    "read_path",
    "spread",
    "stratified_subset",
    "tasks_of",
    "testing_on_shares",
    "warnings_of",
]
