"""The hub's cache where it is out of reach, and what is said of weights that could not be had; no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmtt import hub

NAMES = (
    *("GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError"),
    *("LocalEntryNotFoundError", "OfflineModeIsEnabled", "HFValidationError"),
)


def kind(name: str, *bases: type[BaseException]) -> type[Exception]:
    return type(name, bases or (Exception,), {})


def chained(error: BaseException, *, named: bool) -> BaseException:
    """An error of a package of models, raised from the hub's, or merely while handling it."""
    try:
        try:
            raise error
        except Exception as cause:
            if named:
                raise OSError("it cannot be loaded") from cause
            raise OSError("it cannot be loaded")  # noqa: B904
    except OSError as outer:
        return outer


Missing = kind("RepositoryNotFoundError")
SAID = {
    "GatedRepoError": (kind("GatedRepoError", Missing), "a/b is gated: accept its licence at https://"),
    "RepositoryNotFoundError": (Missing, "a/b is neither a folder nor a repository"),
    "HFValidationError": (kind("HFValidationError", ValueError), "a/b is neither a folder nor a repository"),
    "RevisionNotFoundError": (kind("RevisionNotFoundError"), "a/b has no such revision"),
    "LocalEntryNotFoundError": (kind("LocalEntryNotFoundError"), "run `hf download a/b`"),
    "OfflineModeIsEnabled": (kind("OfflineModeIsEnabled"), "run `hf download a/b`"),
    "ConnectionError": (ConnectionResetError, "the hub cannot be reached"),
    "ConnectError": (kind("ConnectError"), "the hub cannot be reached"),
}


@pytest.mark.parametrize("name", SAID)
def test_every_kind_has_its_remedy(name: str) -> None:
    made, said = SAID[name]
    error = made("403\nand more")
    for found in (error, chained(error, named=True), chained(made("403"), named=False)):
        line = hub.refusal("a/b", found)
        assert line is not None and said in line and "\n" not in line


def test_an_error_of_something_else_is_left_to_the_caller() -> None:
    assert hub.refusal("a/b", ValueError("no such shape")) is None
    assert hub.first_line(ValueError("\n no such shape.\nmore")) == "no such shape"
    assert hub.first_line(KeyError()) == "KeyError"


def test_the_hub_s_package_has_these_names() -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    assert [name for name in NAMES if not hasattr(errors, name)] == []
    assert issubclass(errors.GatedRepoError, errors.RepositoryNotFoundError)


def test_a_hub_out_of_reach_is_asked_once_and_then_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []

    def offline(where: str, answer: bool) -> bool:
        monkeypatch.setattr(hub, "_answers", lambda url: asked.append(url) or answer)
        with pytest.raises(KeyError), hub.cache_if_unreachable(where):
            found = constants.HF_HUB_OFFLINE
            with hub.cache_if_unreachable(where):  # as parts of a pipeline are loaded
                assert found == constants.HF_HUB_OFFLINE
            raise KeyError
        assert constants.HF_HUB_OFFLINE is False
        return found

    assert offline("a/b", answer=False) and asked == [constants.ENDPOINT]
    assert not offline("a/b", answer=True)
    asked.clear()
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for where in ("here", str(tmp_path), "./none", "~/none", "/none/at/all", "a/b/c"):
        assert not offline(where, answer=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.cache_if_unreachable("a/b"):
        assert constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE and asked == []
