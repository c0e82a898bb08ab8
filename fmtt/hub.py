"""Weights of the hub: by its cache where it cannot be reached; and why they could not be had, in one line."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0
"""Seconds until a hub that does not answer counts as out of reach."""
_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@contextmanager
def cache_if_unreachable(where: str) -> Iterator[None]:
    """Ask the hub once, if ``where`` is no folder but may be there. If it does not answer, the block is as
    under HF_HUB_OFFLINE=1: each file would be asked for again and again, with a warning each time."""
    try:
        from huggingface_hub import constants
    except ImportError:  # nothing can be loaded from there
        yield
        return
    before = constants.HF_HUB_OFFLINE
    if not before and _ID.fullmatch(where) and not os.path.exists(where):
        constants.HF_HUB_OFFLINE = not _answers(constants.ENDPOINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*local_dir_use_symlinks.*")  # which diffusers still gives
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(url, timeout=PATIENCE)
    except Exception:  # of whichever package the hub's own sends requests with
        return False
    return True


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def refusal(where: str, error: BaseException) -> str | None:
    """What the hub, or its cache, had against ``where``; None where the error says nothing of the hub.

    Kinds of errors are told by name, so that the hub's own package need not be there.
    """
    kinds: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in kinds:
        page = f"https://huggingface.co/{where}"
        return f"{where} is gated: accept its licence at {page}, then run `hf auth login`"
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"}:
        return (
            f"{where} is no folder here, not in the hub's cache, and the hub cannot be reached: run "
            f"`hf download {where}` where there is a network, and give the folder or set HF_HOME"
        )
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return f"{where} is neither a folder nor a repository of the hub that you may read; check the name"
    if "RevisionNotFoundError" in kinds:
        return f"{where} has no such revision on the hub; check revision="
    return None
