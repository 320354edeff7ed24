"""Folders that are on the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from isospike.errors import InputError, first_sentence

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""The names of ports on the hub: user and name."""
NOT_NEEDED = ["report.*", "*.csv"]  # to load a model


def fetch_folder(
    who: str,
    place: str | Path,
    *,
    revision: str | None = None,
    subfolder: str = "",
    **keywords: Any,
) -> Path:
    """A folder, or else what the hub holds under a name, downloaded unless it is cached.

    Args:
        who: The function that the user called.
        place: A folder, or a name on the hub.
        revision: Branch, tag or commit; ``main`` if None.
        subfolder: A folder in it.
        keywords: ``cache_dir``, ``token``, ``local_files_only``, ``force_download`` of
            ``huggingface_hub.snapshot_download``.

    Returns:
        The folder; whether there is one is not checked where ``place`` is no name of the hub.

    Raises:
        InputError: The hub has no such name or cannot be reached; the
            message says which revisions are cached.
    """
    path = Path(os.path.expanduser(place))  # noqa: PTH111 - that of Path raises for ~nobody
    local = path.exists() or path.parent != Path() and path.parent.is_dir()  # a slip in a path
    if local or not HUB_NAME.fullmatch(str(place)):
        return path / subfolder
    import huggingface_hub

    name = str(place)
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, ignore_patterns=NOT_NEEDED, **keywords
        )
    except Exception as error:
        at = f"{name!r} at {revision!r}" if revision else repr(name)
        cached = _cached(name, keywords.get("cache_dir"))
        advice = (
            f"Cached are the revisions {', '.join(cached)}"
            if cached
            else "Nothing of it is cached: check the name and the connection"
        )
        why = first_sentence(error).rstrip(".")
        raise InputError(
            f"{who} needs a folder, or a name that the hub can give, got {at} ({why}). {advice}."
        ) from error
    return Path(found) / subfolder


def _cached(name: str, cache_dir: Any) -> list[str]:
    """Names of the revisions of a model that are on this computer."""
    import huggingface_hub

    try:
        cache = huggingface_hub.scan_cache_dir(cache_dir)
    except (huggingface_hub.errors.CacheNotFound, OSError, ValueError):
        return []
    repos = [r for r in cache.repos if r.repo_id == name and r.repo_type == "model"]
    return sorted(
        ref for repo in repos for v in repo.revisions for ref in (v.refs or {v.commit_hash})
    )
