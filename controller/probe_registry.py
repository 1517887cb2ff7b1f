"""Find the probes of a model: those of a folder, or the pretrained ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import CapabilityError, TerselyError
from ..probes import io as probe_io
from ..probes.artifact import Artifact, ArtifactError, StoredValue, load
from ..probes.io import MODE, TEXT, TextProbe, find_pretrained
from .types import BindContext, Capability, ModelHandle

if TYPE_CHECKING:
    from ..probes.tier_selector import TierProbe

Learned = TypeVar("Learned", bound=StoredValue)


class ProbeError(TerselyError, ValueError, code="no_probe"):
    """This model has no probe, or not the one that is needed."""


def load_tier_probe(engine: ModelHandle, folder: str | None) -> TierProbe | None:
    """The difficulty probe of a folder of `tersely calibrate`, or the pretrained one; None if there is none.

    Raises ProbeError for a folder without one, ArtifactError for one that is another model's or was changed.
    """
    path = find_probe(engine, folder, "difficulty")
    if path is None:
        return None
    return probe_io.load_tier_probe(path, engine.fingerprint())


def load_stop_rule(engine: ModelHandle | None, folder: str | None, trials: bool | None) -> probe_io.StoredRule:
    """The readiness probe with its certified threshold, with `trials`, without, or (None) whichever saves more.

    Raises ProbeError if there is none for this model, CapabilityError if the engine does not show what it reads.
    """
    if engine is None or Capability.HIDDEN_STATES not in engine.capabilities:
        name = "recorded output and custom_generate do" if engine is None else f"{engine.name!r} does"
        raise CapabilityError(f"a readiness probe reads hidden states, which {name} not show; use tersely.generate")
    remedy = "make one with `tersely collect` and `tersely calibrate`, and pass its folder (probes)"
    path = require_probe(engine, folder, "readiness", "readiness probe", remedy)
    can_try = Capability.TRIALS in engine.capabilities
    rule = probe_io.load_stop_rule(path, engine.fingerprint(), trials if can_try else False)
    if engine.hidden_layers is not None and rule.layer not in engine.hidden_layers:
        raise CapabilityError(
            f"the readiness probe reads hidden layer {rule.layer}; {engine.name!r} shows only the last one "
            f"({engine.hidden_layers[-1]}); collect and calibrate a probe on that (tersely collect --layers=-1)"
        )
    return rule


def load_text_probe(folder: str | None) -> TextProbe:
    """The text probe of a folder of `tersely calibrate`; raises ProbeError if there is none."""
    if folder is None:
        raise ProbeError("no folder of probes was given; make one with `tersely calibrate LOGS --out DIR`")
    return probe_io.load_text_probe(_find_in(folder, TEXT))


def load_mode_probe(engine: ModelHandle, folder: str | None, layer: int) -> Artifact:
    """The probe that `tersely agents --router-out` wrote into a folder, or the pretrained one.

    Raises ProbeError if there is none for this model, ArtifactError if it is another model's or was changed.
    """
    remedy = "train one with `tersely agents --router-out`, and pass its folder"
    path = Path(folder) if folder is not None else require_probe(engine, None, MODE, "router", remedy)
    return load(path, fingerprint=engine.fingerprint(), layer=layer, kind=MODE)


def find_probe(engine: ModelHandle, folder: str | None, kind: str) -> Path | None:
    """The folder of a model's probe; None without a pretrained one. Raises ProbeError for a folder without one."""
    if folder is None:
        fingerprint = engine.fingerprint()
        return None if fingerprint is None else find_pretrained(fingerprint, kind)
    return _find_in(folder, kind)


def _find_in(folder: str, kind: str) -> Path:
    path = Path(folder) / kind
    if not path.is_dir():
        raise ProbeError(f"{folder} has no {kind} probe; accepted: a folder that `tersely calibrate` wrote")
    return path


def require_probe(engine: ModelHandle, folder: str | None, kind: str, what: str, remedy: str) -> Path:
    """The folder of a model's probe; raises ProbeError if there is none, by these words."""
    path = find_probe(engine, folder, kind)
    if path is None:
        raise ProbeError(f"there is no {what} for {engine.name!r}; {remedy}")
    return path


def load_learned(
    context: BindContext, given: Learned | None, folder: str | None, kind: type[Learned], remedy: str
) -> Learned:
    """A value learned for a model: the given one, else that of a folder, else the pretrained one.

    Raises ProbeError, with the remedy, if there is none, and ArtifactError for one of another model.
    """
    engine = context.engine
    if engine is None:
        raise ProbeError(f"a {kind.noun} needs an engine; recorded output cannot be changed by it")
    if given is None:
        path = require_probe(engine, folder or context.probes, kind.kinds[0], kind.noun, remedy)
        return kind.load(path, engine.fingerprint(), engine.name)
    if given.base["fingerprint"] != engine.fingerprint():
        raise ArtifactError(f"the {kind.noun} belongs to {given.base['name']}, and the model is {engine.name!r}")
    return given
