"""Files of the Hugging Face hub, from its cache or downloaded; fails quickly where neither is possible."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from finetune.errors import first_line, shortened

# seconds; the hub's own client retries for about a minute before it gives up
PROBE_TIMEOUT = 5.0


_CACHE_ALONE = ContextVar("_CACHE_ALONE", default=False)


@contextmanager
def cache_alone() -> Iterator[None]:
    """Ask no server inside the block: a name that is read from a file may not decide whom this machine contacts."""
    token = _CACHE_ALONE.set(True)
    try:
        yield
    finally:
        _CACHE_ALONE.reset(token)


class UnavailableError(Exception):
    """Weights that cannot be obtained now; the text lists what was tried."""


def hub_file(repo: str, filenames: Sequence[str], *, revision: str | None = None) -> Path:
    """Return the first of some files that a hub repository holds; use the network only if none is in the cache.

    Args:
        repo: Name ``owner/name`` of the repository, optionally with ``@revision``.
        filenames: File names in order of preference.
        revision: Branch, tag or commit; None for the one after ``@``, else the main branch.

    Raises:
        UnavailableError: The file is neither cached nor reachable, or the repository has no such file.
    """
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    repo, _, marked = repo.partition("@")
    revision = revision or marked or None
    for filename in filenames:
        try:
            return Path(hf_hub_download(repo, filename, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        except HFValidationError:
            raise UnavailableError(f"nothing: {repo!r} is not a name of the hub; names are OWNER/NAME") from None
    cache = f"the hub's cache {constants.HF_HUB_CACHE}"
    if _CACHE_ALONE.get():
        raise UnavailableError(f"{cache} (no file of {repo}), and no server, because a file names it and not you")
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT)
    except Exception as error:  # offline mode, no route, proxy, certificate: each raises another class
        reason = first_line(error)
        raise UnavailableError(f"{cache} (no file of {repo}) and {constants.ENDPOINT} ({reason})") from None
    for filename in filenames:
        try:
            return Path(hf_hub_download(repo, filename, revision=revision))
        except LocalEntryNotFoundError as error:  # the connection broke during the download
            raise UnavailableError(f"{cache} and {constants.ENDPOINT}/{repo} ({error})") from None
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            reason = first_line(error)
            raise UnavailableError(f"{constants.ENDPOINT}/{repo} ({reason})") from None
    raise UnavailableError(f"{constants.ENDPOINT}/{repo}, which has none of {shortened(filenames)}")


def cached_revision(repo: str) -> str | None:
    """Return the commit of a repository whose weights or configuration lie in the hub's cache, without using the network.

    Args:
        repo: Name ``owner/name`` of the repository, optionally with ``@revision``.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repo, _, marked = repo.partition("@")
    for filename in ("model.safetensors", "pytorch_model.bin", "config.json"):
        try:
            path = try_to_load_from_cache(repo, filename, revision=marked or None)
        except HFValidationError:
            return None
        if isinstance(path, str):
            # CACHE/models--OWNER--NAME/snapshots/COMMIT/FILE
            return Path(path).parent.name
    return None
