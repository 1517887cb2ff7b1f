"""Saved probes on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .artifact import ABOUT, NUMBERS, Artifact, ArtifactError, load


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
