"""What the probes for difficulty and for readiness share: a face on the artifact that each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from numpy.typing import ArrayLike

from .artifact import Artifact, ArtifactError, from_pretrained, load, push_to_hub, save
from .network import Array, Network


class Fitted(Protocol):
    """What a probe is made of: a fitted `ProbeClassifier`, or anything that gives its classes and a network."""

    classes_: Any

    def to_network(self) -> Network:
        """What was learnt."""
        ...


@dataclass(frozen=True)
class Probe:
    """A learnt probe of one kind, ready for use; raises ArtifactError for an artifact of another kind."""

    kind: ClassVar[str]
    artifact: Artifact

    def __post_init__(self) -> None:
        if self.artifact.kind != self.kind:
            raise ArtifactError(f"this is a {self.artifact.kind} probe; accepted: a {self.kind} probe")

    @classmethod
    def of(cls, estimator: Fitted, *, layer: int, base: Mapping[str, str], **more: Any) -> Self:
        """The probe that an estimator learnt; `more`: further fields of `Artifact`, such as provenance."""
        classes = tuple(str(name) for name in estimator.classes_)
        about = {"features": (), **more}
        return cls(Artifact(cls.kind, estimator.to_network(), classes, layer, base=base, **about))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns of `proba`."""
        return self.artifact.classes

    def proba(self, X: ArrayLike) -> Array:  # noqa: N803 - as scikit-learn calls it
        """Probabilities [n, classes] of rows [n, d]; raises OptionError for another width or what is not finite."""
        return self.artifact.network.proba(X)

    def save(self, folder: Path | str) -> None:
        """Write it to a folder, see `save`."""
        save(self.artifact, folder)

    @classmethod
    def load(cls, folder: Path | str, *, fingerprint: str | None = None, layer: int | None = None) -> Self:
        """Read it from a folder, see `load`."""
        return cls(load(folder, fingerprint=fingerprint, layer=layer))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload it to the Hugging Face hub, see `push_to_hub`."""
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            save(self.artifact, folder)
            return push_to_hub(folder, repo_id, **options)

    @classmethod
    def from_pretrained(cls, name_or_path: Path | str, **options: Any) -> Self:
        """Load it from a folder or from the Hugging Face hub, see `from_pretrained`."""
        return cls(from_pretrained(name_or_path, **options))
