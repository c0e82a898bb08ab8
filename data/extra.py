"""What train/ and data/ need beside the library's own packages."""

from __future__ import annotations

TRAIN_EXTRA = frozenset({"lightning", "rich", "torchdiffeq", "wandb", "webdataset"})


def how_to_install(error: ModuleNotFoundError) -> str:
    """The line for a command that cannot import one of TRAIN_EXTRA.

    Raises:
        ModuleNotFoundError: again, when it is another module: a defect.
    """
    if error.name not in TRAIN_EXTRA:
        raise error
    return f"this needs {error.name}: run `make install`, or pip install -e '.[train]'"
