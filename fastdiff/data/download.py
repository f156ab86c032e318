"""One file from one of several mirrors: whole, checked, and in place at once, or not at all."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastdiff.data.idx import unpack

TIMEOUT_S = 30  # for a connection or a read that stands still, not for the whole file


def download(target: Path, mirrors: Sequence[str], md5: str) -> None:
    """Fetches `mirror + target.name` from the first mirror that delivers it intact, and saves it as `target`.

    The file appears under its name only when it is complete and correct; a failed attempt leaves nothing behind.

    Args:
        target: where to save; the folder is made if need be.
        mirrors: base URLs, tried in order, each ending in "/".
        md5: hexadecimal, of the contents after unpacking gzip.

    Raises:
        OSError: no mirror delivered the file, or it cannot be saved; the message gives each mirror's failure.
    """
    failures = []
    for mirror in mirrors:
        url = mirror + target.name
        try:
            content = _fetch(url)
            found = hashlib.md5(unpack(content, url), usedforsecurity=False).hexdigest()
            if found != md5:
                raise ValueError(f"{url}: wrong checksum: got md5 {found} of the unpacked contents, expected {md5}")
        except (OSError, ValueError) as error:
            failures.append(f"{url}: {error}" if url not in str(error) else str(error))
        else:
            _save(content, target)
            return
    raise OSError(f"could not download {target.name}:\n  " + "\n  ".join(failures))


def _fetch(url: str) -> bytes:
    from http.client import HTTPException
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read()  # whole: only then does http.client notice a connection that was cut
    except HTTPException as error:  # not an OSError by itself
        raise OSError(f"{url}: broken transfer: {error!r}") from error


def _save(content: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared data folder from other users
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
