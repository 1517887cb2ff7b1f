"""Check what a release consists of: one sdist, one wheel, and in both the data that the package needs.

Usage: python .ci/release.py dist
"""

import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = (
    "models/tersely-tiny-small/model.safetensors",
    "models/tersely-tiny-small/chat_template.jinja",
    "probes/pretrained/tersely-tiny-small/readiness/probe.safetensors",
    "py.typed",
    "kernels/csrc/native.c",
)


def check(folder: Path) -> None:
    """Exit with a message for an archive that is missing, doubled or incomplete."""
    (sdist,), (wheel,) = (list(folder.glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    with tarfile.open(sdist) as packed:
        names = {sdist.name: packed.getnames()}
    with zipfile.ZipFile(wheel) as zipped:
        names[wheel.name] = zipped.namelist()
    for archive, members in names.items():
        missing = [name for name in NEEDED if not any(member.endswith(name) for member in members)]
        if missing:
            sys.exit(f"{archive} lacks {', '.join(missing)}")
        print(f"{archive}: {len(members)} files, {(folder / archive).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    check(Path(sys.argv[1]))
