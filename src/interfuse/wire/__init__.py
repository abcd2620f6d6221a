"""Serialisation of messages, commit files, and the ledger of bytes."""

from __future__ import annotations

from interfuse.wire.body import Limits, TensorSpec
from interfuse.wire.codecs import NO_CODEC, NO_CODECS, Codec, Codecs
from interfuse.wire.files import FileRecord, sync_folder
from interfuse.wire.frame import Arriving, decode, encode, encoded, encoded_size, raw_size
from interfuse.wire.ledger import Casting, Direction, Entry, Heading, Ledger, Totals, Volume, from_json, to_json
from interfuse.wire.memory import copied
from interfuse.wire.packs import Content, Packs, Part, Source, Tensors, open_pack, save_pack
from interfuse.wire.pieces import Pieces

__all__ = [
    "NO_CODEC",
    "NO_CODECS",
    "Arriving",
    "Casting",
    "Codec",
    "Codecs",
    "Content",
    "Direction",
    "Entry",
    "FileRecord",
    "Heading",
    "Ledger",
    "Limits",
    "Packs",
    "Part",
    "Pieces",
    "Source",
    "TensorSpec",
    "Tensors",
    "Totals",
    "Volume",
    "copied",
    "decode",
    "encode",
    "encoded",
    "encoded_size",
    "from_json",
    "open_pack",
    "raw_size",
    "save_pack",
    "sync_folder",
    "to_json",
]
