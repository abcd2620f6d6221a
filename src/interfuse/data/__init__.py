"""Data sets (found, downloaded, verified, cached) and their division between clients."""

from interfuse.data.batches import Batch, ClientData, EpochOrder
from interfuse.data.dataset import Dataset, stratified_subset
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

__all__ = [
    "IID",
    "PARTITIONS",
    "TABLES",
    "Batch",
    "ClientData",
    "Dataset",
    "DatasetInfo",
    "Dirichlet",
    "EpochOrder",
    "Natural",
    "Partition",
    "Pathological",
    "Shards",
    "Share",
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
