"""Loading and saving probes, in folders and on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .artifact import ABOUT, KINDS, NUMBERS, Artifact, ArtifactError, load, require_fingerprint, save
from .drift import KnownQuestions, Region
from .network import ArrayRecord, Network
from .risk_control import Certificate
from .rule import FEATURES, TEXT_FEATURES, TRIAL_FEATURES, Evidence, StopRule
from .tier_selector import TierProbe, TierTable

DIFFICULTY, READINESS, MODE, TEXT = KINDS
ANY_MODEL: Mapping[str, str] = {"name": "any model", "fingerprint": ""}
_PRETRAINED = Path(__file__).parent / "pretrained"


def find_pretrained(fingerprint: str, kind: str) -> Path | None:
    """Find the folder of the probe of a kind that is released with tersely for a model."""
    return _list_pretrained().get((fingerprint, kind))


@cache
def _list_pretrained() -> dict[tuple[str, str], Path]:
    folders = {}
    for path in _PRETRAINED.glob("*/*/probe.json"):
        base = json.loads(path.read_text(encoding="utf-8"))["base"]
        folders[base["fingerprint"], path.parent.name] = path.parent
    return folders


def save_tier_probe(
    probe: TierProbe, folder: Path, base: Mapping[str, str], provenance: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """Write a difficulty probe with its table of tiers."""
    table = {"accuracy": probe.table.accuracy, "tokens": probe.table.tokens}
    arrays = {name: np.asarray(array, np.float32) for name, array in table.items()} | _name_arrays(known=probe.known)
    save(
        Artifact(
            kind=DIFFICULTY,
            network=probe.network,
            classes=probe.classes,
            layer=probe.layer,
            features=(),
            base=base,
            provenance={**provenance, "tiers": list(probe.tiers), "price": probe.price, "exits": probe.exits},
            metrics=metrics,
            arrays=arrays,
        ),
        folder,
    )


def load_tier_probe(folder: Path, fingerprint: str | None) -> TierProbe:
    """Read a difficulty probe; raises ArtifactError if it is of another model or was changed."""
    artifact = load(folder, fingerprint=require_fingerprint(fingerprint, folder), kind=DIFFICULTY)
    facts, arrays = artifact.provenance, artifact.arrays
    with _refuse_other_contents(folder):
        accuracy, tokens = arrays["accuracy"].astype(np.float64), arrays["tokens"].astype(np.float64)
        return TierProbe(
            artifact.network,
            artifact.classes,
            artifact.layer,
            TierTable(tuple(facts["tiers"]), accuracy, tokens),
            float(facts["price"]),
            artifact.learned_from,
            bool(facts["exits"]),
            _read_known(artifact),
        )


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A stop rule with the layer it reads and its certificate."""

    rule: StopRule
    layer: int
    threshold: float | None  # the certified threshold; None if nothing could be certified
    certificate: Certificate
    region: Region  # where the calibration questions lie at the end of their first thought
    learned_from: frozenset[str]  # hashes of the questions it was trained and certified on
    known: KnownQuestions | None = None  # what these look like; None in artifacts of earlier versions


def choose_variant(certificates: Mapping[str, Certificate]) -> str:
    """Choose between the rule with `trials` and the `free` one by the tokens saved on the calibration split."""
    return "trials" if certificates["trials"].saved > certificates["free"].saved else "free"


def save_stop_rule(
    rules: tuple[StopRule, StopRule],
    certificates: Mapping[str, Certificate],
    region: Region,
    layer: int,
    folder: Path,
    base: Mapping[str, str],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
    known: KnownQuestions | None = None,
) -> None:
    """Write the rule without trials and the one with trials; certificates: by `free` and `trials`."""
    free, trials = rules
    arrays = _name_arrays(region=region, known=known, paid=None if trials.paid is None else trials.paid.network)
    settings = {
        "low": trials.low,
        "high": trials.high,
        "overhead": trials.overhead,
        "paid classes": None if trials.paid is None else list(trials.paid.classes),
    }
    save(
        Artifact(
            kind=READINESS,
            network=free.free.network,
            classes=free.free.classes,
            layer=layer,
            features=(*FEATURES, *TRIAL_FEATURES),
            base=base,
            provenance={**provenance, "rule": settings},
            metrics=metrics,
            certificates=[{"name": name, **asdict(certificate)} for name, certificate in certificates.items()],
            arrays=arrays,
        ),
        folder,
    )


def load_stop_rule(folder: Path, fingerprint: str | None, trials: bool | None) -> StoredRule:
    """Read a stop rule with trials, without, or (None) the one that saved more in calibration; raises ArtifactError."""
    artifact = load(folder, fingerprint=require_fingerprint(fingerprint, folder), kind=READINESS)
    if artifact.features != (*FEATURES, *TRIAL_FEATURES):
        raise ArtifactError(f"{folder} reads other features than this version of tersely computes; calibrate again")
    with _refuse_other_contents(folder):
        return _make_stored_rule(artifact, trials)


def _make_stored_rule(artifact: Artifact, trials: bool | None) -> StoredRule:
    free, settings = Evidence(artifact.network, artifact.classes), artifact.provenance["rule"]
    certificates = {
        values["name"]: Certificate.from_dict({name: value for name, value in values.items() if name != "name"})
        for values in artifact.certificates
    }
    if trials is None:
        trials = choose_variant(certificates) == "trials"
    rule = StopRule(free)
    if trials and settings["paid classes"] is not None:
        paid = Evidence(Network(**_select_arrays(artifact, "paid.")), tuple(settings["paid classes"]))
        rule = StopRule(free, paid, settings["low"], settings["high"], settings["overhead"])
    certificate = certificates["trials" if trials else "free"]
    region, known = Region(**_select_arrays(artifact, "region.")), _read_known(artifact)
    return StoredRule(rule, artifact.layer, certificate.threshold, certificate, region, artifact.learned_from, known)


@dataclass(frozen=True, slots=True)
class TextProbe:
    """Scores values that the thinking states, for any model, or by the states of the reader that `base` names."""

    network: Network  # of text features, and of states; the second output is the probability that a value is final
    certificate: Certificate
    known: KnownQuestions
    learned_from: frozenset[str] = frozenset()
    base: Mapping[str, str] = field(default_factory=lambda: ANY_MODEL)
    layer: int = 0  # of the reader's hidden states

    @property
    def reads_states(self) -> bool:
        return self.network.inputs > len(TEXT_FEATURES)

    def probabilities(self, rows: ArrayLike) -> NDArray[np.float64]:
        """How probably each value is final, [n]; rows: features and states, [n, inputs]."""
        return self.network.proba(rows)[:, 1].astype(np.float64)


def save_text_probe(probe: TextProbe, folder: Path, provenance: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write a text probe; raises WriteError."""
    save(
        Artifact(
            kind=TEXT,
            network=probe.network,
            classes=("other", "final"),
            layer=probe.layer,
            features=TEXT_FEATURES,
            base=probe.base,
            provenance={**provenance, "learned_from": sorted(probe.learned_from)},
            metrics=metrics,
            certificates=[asdict(probe.certificate)],
            arrays=_name_arrays(known=probe.known),
        ),
        folder,
    )


def load_text_probe(folder: Path) -> TextProbe:
    """Read a text probe; raises ArtifactError."""
    artifact = load(folder, kind=TEXT)
    if artifact.features != TEXT_FEATURES:
        raise ArtifactError(f"{folder} reads other features than this version of tersely computes; calibrate again")
    with _refuse_other_contents(folder):
        (certificate,) = map(Certificate.from_dict, artifact.certificates)
        known = KnownQuestions(**_select_arrays(artifact, "known."))
        return TextProbe(artifact.network, certificate, known, artifact.learned_from, artifact.base, artifact.layer)


@contextmanager
def _refuse_other_contents(folder: Path) -> Iterator[None]:
    """Raise ArtifactError where a probe that is whole has not what its kind needs."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} does not hold a usable probe: {error!r}; calibrate again") from None


def _select_arrays(artifact: Artifact, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): a for name, a in artifact.arrays.items() if name.startswith(prefix)}


def _name_arrays(**records: ArrayRecord | None) -> dict[str, Any]:
    """The arrays of records, each after the record's name and a dot."""
    given = {prefix: record for prefix, record in records.items() if record is not None}
    return {f"{prefix}.{name}": array for prefix, one in given.items() for name, array in one.arrays().items()}


def _read_known(artifact: Artifact) -> KnownQuestions | None:
    arrays = _select_arrays(artifact, "known.")
    return KnownQuestions(**arrays) if arrays else None


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Check a saved probe, upload it, and return the address of the commit; raises ArtifactError."""
    from huggingface_hub import HfApi

    load(folder)
    api = HfApi(token=token)
    with _translate_errors(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[NUMBERS, ABOUT],
            revision=revision,
            commit_message="Upload a tersely probe",
        )
    return str(commit)


def from_pretrained(
    name_or_path: Path | str,
    *,
    revision: str | None = None,
    token: str | None = None,
    fingerprint: str | None = None,
    layer: int | None = None,
) -> Artifact:
    """Load a probe from a folder or from the hub; raises ArtifactError, as `load` does."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        with _translate_errors(str(name_or_path)):
            folder = Path(
                snapshot_download(str(name_or_path), revision=revision, token=token, allow_patterns=[NUMBERS, ABOUT])
            )
    return load(folder, fingerprint=fingerprint, layer=layer)


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{name!r} is not a folder, and the hub answered: {reason}", code="hub_error") from None
