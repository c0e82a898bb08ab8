"""``fmtt prompts`` makes a suite's images with a tiny pipeline, continues, and repeats itself bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fmtt.__main__ import main
from fmtt.cli.prompts import OfPrompts
from fmtt.rewards import describe
from fmtt.rewards.region import Brightness

pytest.importorskip("diffusers")
from tests.models.diffusers.conftest import MAKERS, diffusers

PROMPTS = ("a cat", "two dogs", "a clock")
SIZE = ("--height", "8", "--width", "8", "--guidance-scale", "3", "--steps", "3", "--dtype", "float32")
SIZE += ("--num-images", "2", "--device", "cpu")
SEARCH = ("--num-particles", "3", "--keep", "1", "--rounds", "2")
BRIGHT = ("--reward", "brightness:target=1,strength=50")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("model")
    MAKERS["flux"]().save_pretrained(folder)
    yield folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "tag": "x"}) + "\n" for text in PROMPTS))
    return path


def run(*words: Any) -> int:
    return main(["prompts", *map(str, words)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_search_in_the_layout_of_geneval(model: Path, suite: Path, tmp_path: Path, capsys: Any) -> None:
    judge = ("--judge", "brightness:target=0,strength=50")
    words = (model, suite, *SIZE, *SEARCH, *BRIGHT, *judge)
    assert run(*words, "--out", tmp_path / "a", "--part", "0/2") == 0
    first = files(tmp_path / "a" / "images")
    assert {name.split("/")[0] for name in first} == {"00000", "00002"}
    assert run(*words, "--out", tmp_path / "a") == 0
    assert "2 of 3 prompts are there already" in capsys.readouterr().out
    whole = files(tmp_path / "a" / "images")
    names = ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    assert sorted(whole) == [f"{k:05d}/{name}" for k in range(3) for name in names]
    assert first.items() <= whole.items()
    assert json.loads(whole["00001/metadata.jsonl"]) == {"prompt": "two dogs", "tag": "x"}
    assert whole["00001/samples/0000.png"] != whole["00001/samples/0001.png"]

    assert run(*words, "--out", tmp_path / "b") == 0
    assert files(tmp_path / "b" / "images") == whole
    per_image = json.loads((tmp_path / "b" / "summary.json").read_text())["per_image"]
    # Three look-aheads in each of two rounds and at the end, and a gradient for the survivor of each round.
    assert per_image["reward_calls"] == 3 * 3 + 2
    assert per_image["judge"] < per_image["reward"] <= 0


def test_steering_finds_more_reward_than_sampling(model: Path, suite: Path, tmp_path: Path) -> None:
    found = {}
    for method in ("sample", "best_of_n", "tilt", "search"):
        reward = () if method == "sample" else BRIGHT
        judge = ("--judge", "brightness:target=1,strength=50") if method == "sample" else ()
        out = tmp_path / method
        assert (
            run(
                model,
                suite,
                *SIZE,
                *SEARCH,
                *reward,
                *judge,
                "--method",
                method,
                "--out",
                out,
                "--part",
                "0/3",
            )
            == 0
        )
        per_image = json.loads((out / "summary.json").read_text())["per_image"]
        found[method] = per_image["judge" if method == "sample" else "reward"]
        images = sorted((out / "images" / "00000" / "samples").iterdir())
        assert [path.name for path in images] == ["0000.png", "0001.png"]
    assert found["best_of_n"] > found["sample"] and found["search"] > found["sample"]


def test_the_reward_knows_each_image_s_prompt_in_the_whole_suite() -> None:
    seen: list[list[int]] = []

    def reward(x: torch.Tensor, cond: Any = None) -> torch.Tensor:
        seen.append(cond["prompt_index"].tolist())
        return x.flatten(1).sum(1)

    shifted = OfPrompts(reward, torch.tensor([4, 2]))
    shifted(torch.zeros(3, 1, 2, 2), {"prompt_index": torch.tensor([1, 0, 1])})
    shifted(torch.zeros(2, 1, 2, 2))
    assert seen == [[2, 4, 2], [4, 4]]
    bright = Brightness(target=1.0, value_range=(0.0, 1.0))
    assert describe(OfPrompts(bright, torch.zeros(1))) == describe(bright)


@pytest.mark.parametrize(
    "words, says",
    [
        (("--method", "search"), "--method sample takes no --reward, every other method needs one"),
        (("--method", "sample", *BRIGHT), "--method sample takes no --reward"),
        (("--method", "serch"), "did you mean 'search'"),
        (("--reward", "brihtness"), "did you mean 'brightness'"),
        (("--method", "search", *BRIGHT, "--judge", BRIGHT[-1]), "is not held out"),
        (("--part", "3/3"), "K of K/N must lie between 0 and N - 1, got 3/3"),
    ],
)
def test_mistakes(suite: Path, tmp_path: Path, capsys: Any, words: tuple[str, ...], says: str) -> None:
    assert run("nowhere", suite, "--out", tmp_path / "out", *words) == 2
    assert says in capsys.readouterr().err


def test_a_size_that_does_not_fit_leaves_nothing_behind(
    model: Path, suite: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert run(model, suite, *SIZE, "--method", "sample", "--height", "7", "--out", out) == 2
    assert "height must be a multiple of" in capsys.readouterr().err and not out.exists()


def test_a_device_that_is_not_there_is_one_line(
    model: Path, suite: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert run(model, suite, *SIZE, "--method", "sample", "--device", "abacus", "--out", out) == 2
    error = capsys.readouterr().err
    assert "--device abacus cannot be used" in error and error.count("\n") == 1 and not out.exists()


def test_another_method_does_not_mix_into_a_folder(
    model: Path, suite: Path, tmp_path: Path, capsys: Any
) -> None:
    words = (model, suite, *SIZE, "--method", "sample", "--part", "0/3", "--out", tmp_path / "out")
    assert run(*words) == 0
    assert run(*words, "--seed", "1") == 2
    assert "holds images made with seed=0, now it is 1" in capsys.readouterr().err
    assert run(*words, "--dtype", "bfloat16" if "float32" in words else "float32") == 2
    assert "holds images made with dtype=" in capsys.readouterr().err
    suite.write_text(suite.read_text().replace("a ", "one "))
    assert run(*words) == 2
    assert "holds images made with content of suite=" in capsys.readouterr().err
