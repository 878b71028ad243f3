"""A zoo from a hub as a folder of one's own."""

import shutil
from pathlib import Path

from zootools.errors import DamagedZooError, SpecError
from zootools.files import durable_path, sha256_file
from zootools.hub.locate import Place, locate, on_hub
from zootools.hub.names import require_name
from zootools.manifest import UNHASHED, read_manifest
from zootools.objects import is_url


def pull(name: str, folder: Path, *, revision: str | None = None, hub: str | Path | None = None) -> Place:
    """Copy a published zoo, by its name or URL, into a folder; the same call again fetches only what is missing.

    The manifest comes last, so an interrupted copy is never taken for a zoo. Raises SpecError when the folder holds
    something else, ZooNotFoundError when there is no such zoo, DamagedZooError when a file is not what the manifest
    promises.
    """
    wanted = None if is_url(name) else require_name(name, revision)
    place = locate(name, revision, hub) if wanted is None or Path(name).exists() else on_hub(wanted, hub)
    manifest = read_manifest(place.folder)
    files = manifest["files"]
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder}: is a file; expected a folder")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strangers = {file for file in present if not Path(file).name.startswith(".")} - {*files, *UNHASHED}
    if strangers or ((folder / "zoo.json").exists() and read_manifest(folder)["sha256"] != manifest["sha256"]):
        raise SpecError(f"{folder}: holds something else; choose another folder")
    missing = [
        file
        for file, info in files.items()
        if not (folder / file).is_file() or sha256_file(folder / file) != info["sha256"]
    ]
    place.fetch([*missing, "README.md", "build.json"])
    for file in [*missing, "build.json", "README.md", "zoo.json"]:
        if file == "build.json" and not (place.folder / file).is_file():
            continue
        with durable_path(folder / file) as temporary:
            shutil.copyfile(place.folder / file, temporary)
            if file in files and sha256_file(temporary) != files[file]["sha256"]:
                raise DamagedZooError(f"{place.folder / file}: its bytes have changed (sha256)")
    return place
