"""interfuse: federated learning of parties whose models differ."""

from __future__ import annotations

from interfuse.aggregation import BufferPolicy, Mean, counted_mean, extract, keys_plan, moved
from interfuse.api import load_run, resume, run
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Arrival, Clients, Replies
from interfuse.clock import Devices
from interfuse.comparison.python import ComparedEntry, ComparisonResult, compare
from interfuse.data import (
    IID,
    Batch,
    Classification,
    Dataset,
    Dirichlet,
    LanguageModelling,
    MultiLabel,
    Natural,
    Pathological,
    QuestionAnswering,
    Regression,
    Shards,
    Task,
    load,
)
from interfuse.errors import InterfuseError, Notice
from interfuse.handler import on_client
from interfuse.messages import (
    Change,
    ClassCounts,
    Data,
    Disclosure,
    FeatureGradients,
    Features,
    Labels,
    Logits,
    Message,
    NamedTensors,
    Parameters,
    Prototypes,
    State,
    Targets,
    Weights,
)
from interfuse.method import ALL, BUFFERS, NOTHING, Method, Network
from interfuse.models import SplitModel, pair, split_at
from interfuse.numerics import Numerics
from interfuse.report.tensorboard import TensorBoard
from interfuse.result import Result
from interfuse.runs import Callback, EarlyStopping, Silent
from interfuse.seeds import SeedResults
from interfuse.server import Server
from interfuse.training import Cosine, Exponential, Fitted, Optimizer, cross_entropy, modular_cross_entropy, total

__all__ = [
    "ALL",
    "BUFFERS",
    "IID",
    "NOTHING",
    "Arrival",
    "Batch",
    "BufferPolicy",
    "Callback",
    "Change",
    "ClassCounts",
    "Classification",
    "Client",
    "ClientId",
    "Clients",
    "ComparedEntry",
    "ComparisonResult",
    "Cosine",
    "Data",
    "Dataset",
    "Devices",
    "Dirichlet",
    "Disclosure",
    "EarlyStopping",
    "Exponential",
    "FeatureGradients",
    "Features",
    "Fitted",
    "InterfuseError",
    "Labels",
    "LanguageModelling",
    "Logits",
    "Mean",
    "Message",
    "Method",
    "MultiLabel",
    "NamedTensors",
    "Natural",
    "Network",
    "Notice",
    "Numerics",
    "Optimizer",
    "Parameters",
    "Pathological",
    "Profile",
    "Prototypes",
    "QuestionAnswering",
    "Regression",
    "Replies",
    "Result",
    "SeedResults",
    "Server",
    "Shards",
    "Silent",
    "SplitModel",
    "State",
    "Targets",
    "Task",
    "TensorBoard",
    "Weights",
    "compare",
    "counted_mean",
    "cross_entropy",
    "extract",
    "keys_plan",
    "load",
    "load_run",
    "modular_cross_entropy",
    "moved",
    "on_client",
    "pair",
    "resume",
    "run",
    "split_at",
    "total",
]
