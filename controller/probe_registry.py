"""Finding the probes of the model at hand: those of a folder, or those released with tersely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CapabilityError, TerselyError
from ..probes.io import find_pretrained
from .policies.base import Policy
from .types import Engine

if TYPE_CHECKING:
    from ..probes.io import StoredRule
    from ..probes.io import ModeProbe
    from ..probes.research.shortcut import Shortcut
    from ..probes.research.steering import Direction
    from ..probes.tier_selector import TierProbe


class ProbeError(TerselyError, ValueError):
    """There is no probe for this model, or not the one that is needed."""


def bind_policy(policy: Policy, engine: Engine, probes: str | None) -> Policy:
    """The policy as it is used on this engine; probes: a folder for those that name none."""
    bind = getattr(policy, "bind", None)
    if bind is None:
        return policy
    if probes is not None and getattr(policy, "probes", "") is None:
        bind = replace(cast(Any, policy), probes=probes).bind
    made: Policy = bind(engine)
    return made


def load_tier_probe(engine: Engine, folder: str | None) -> TierProbe | None:
    """The difficulty probe of `tersely calibrate`'s folder, or the released one; None if there is none for this model.

    Raises ProbeError if a folder is given that has none, ArtifactError if it is another model's or was changed.
    """
    from ..probes.io import load_tier_probe

    place = _place(engine, folder, "difficulty")
    if place is None:
        return None
    return load_tier_probe(place, engine.fingerprint())


def load_stop_rule(engine: Engine, folder: str | None, trials: bool | None) -> StoredRule:
    """The readiness probe with its certified threshold.

    trials: with trial answers, without, or (None) as saves more; without where the engine cannot discard them. Raises
    ProbeError if there is none for this model, CapabilityError for an engine that shows no hidden states, or not those
    of its layer.
    """
    from ..probes.io import load_stop_rule

    if "hidden" not in engine.capabilities:
        raise CapabilityError(f"a readiness probe reads hidden states, which {engine.name!r} does not show")
    place = _place(engine, folder, "readiness")
    if place is None:
        raise ProbeError(
            f"there is no readiness probe for {engine.name!r}; make one with `tersely collect` and "
            "`tersely calibrate`, and give its folder (probes)"
        )
    stored = load_stop_rule(place, engine.fingerprint(), trials if "crop" in engine.capabilities else False)
    shown = getattr(engine, "hidden_layers", None)
    if shown is not None and stored.layer not in shown:
        raise CapabilityError(
            f"the readiness probe reads hidden layer {stored.layer}; {engine.name!r} shows the last one "
            f"({shown[-1]}) alone; collect and calibrate a probe on that (tersely collect --layers=-1)"
        )
    return stored


def load_mode_probe(engine: Engine, folder: str | None, layer: int) -> ModeProbe:
    """The probe that `tersely agents --router-out` put into a folder, or the released one.

    Raises ProbeError if there is none for this model, ArtifactError if it is another model's or was changed.
    """
    from ..probes.io import ModeProbe

    place = _place(engine, None, ModeProbe.kind) if folder is None else Path(folder)
    if place is None:
        raise ProbeError(
            f"there is no router for {engine.name!r}; learn one with `tersely agents --router-out`, and give its folder"
        )
    return ModeProbe.load(place, fingerprint=engine.fingerprint(), layer=layer)


def load_steering_direction(engine: Engine, folder: str | None) -> Direction:
    """The direction of `tersely steer`'s folder, or the released one; raises ProbeError if there is none."""
    from ..probes.research.steering import KIND, load_direction

    place = _place(engine, folder, KIND)
    if place is None:
        raise ProbeError(
            f"there is no direction for {engine.name!r}; find one with `tersely steer`, and give its folder (probes)"
        )
    return load_direction(place, engine.fingerprint(), engine.name)


def load_early_exit(engine: Engine, folder: str | None) -> Shortcut:
    """The shortcut of a training's folder, or the released one; raises ProbeError if there is none."""
    from ..probes.research.shortcut import KIND, load_shortcut

    place = _place(engine, folder, KIND)
    if place is None:
        raise ProbeError(
            f"there is no shortcut for {engine.name!r}; learn one with `tersely train shortcut`, and give its folder "
            "(probes)"
        )
    return load_shortcut(place, engine.fingerprint(), engine.name)


def _place(engine: Engine, folder: str | None, kind: str) -> Path | None:
    if folder is None:
        mark = engine.fingerprint()
        return None if mark is None else find_pretrained(mark, kind)
    place = Path(folder) / kind
    if not place.is_dir():
        raise ProbeError(f"{folder} holds no {kind} probe; accepted: a folder that `tersely calibrate` wrote")
    return place
