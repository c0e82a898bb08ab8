"""Why weights could not be had from a folder or the hub, in one line with the remedy."""

from __future__ import annotations


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
