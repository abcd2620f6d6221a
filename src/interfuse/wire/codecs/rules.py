"""Which codec a field of a message has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from interfuse.errors import ConfigError
from interfuse.wire.codecs.codec import NO_CODEC, Codec

DEFAULT = "default"


@dataclass(frozen=True)
class Codecs:
    """Codecs by what they are for: a field (``FusionOutputs.z``), a kind of message (``FusionPairs``), the ``default``.

    A field goes before the kind of message that travels, that before the record inside of it that has the field, and
    that before the default.
    """

    rules: Mapping[str, Codec] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Codecs:
        """Codecs of texts.

        Raises:
            ConfigError: a text names no codec.
        """
        found = {}
        for key, text in texts.items():
            try:
                found[key] = Codec.parse(text)
            except ConfigError as error:
                raise ConfigError(f"{key}: {error}") from None
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self.rules)

    @property
    def texts(self) -> dict[str, str]:
        """The inverse of :meth:`parse`, each codec in its usual spelling."""
        return {key: str(codec) for key, codec in self.rules.items()}

    def find(self, kind: str, path: str) -> Codec:
        """The codec of a field, such as ``FusionOutputs.z``, in a kind of message, such as ``FusionPairs``."""
        for key in (path, kind, path.partition(".")[0], DEFAULT):
            if key in self.rules:
                return self.rules[key]
        return NO_CODEC

    @property
    def compact(self) -> bool:
        """Whether messages travel in the compact frame: where any is coded, both ends know what they look like."""
        return any(codec != NO_CODEC for codec in self.rules.values())


NO_CODECS = Codecs()
"""Everything travels as it is."""
