"""Text-to-image models at the shell: what a family takes, and one line where it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fmtt.__main__ import main

Folder = Callable[[str], str]
SMALL = ("--height", "8", "--width", "16", "--device", "cpu")
REWARD = ("--reward", "brightness", "--num-particles", "2", "--num-steps", "2")


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def test_pictures_have_the_size_that_is_asked_for(folder: Folder, tmp_path: Path) -> None:
    asked = ("--prompt", "a cat", "--guidance-scale", "3.5", *SMALL, "--out", tmp_path)
    assert run("sample", folder("flux"), "--num-samples", "2", "--steps", "1", *asked) == 0
    assert load_file(tmp_path / "samples.safetensors")["samples"].shape == (2, 4, 4, 8)
    few = ("--lookahead-map", folder("schnell"))
    assert run("tilt", folder("flux"), *REWARD, *few, *asked) == 0
    assert load_file(tmp_path / "samples.safetensors")["samples"].shape == (2, 4, 4, 8)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("flux", "--prompt a", "give --guidance-scale, such as 3.5"),
        ("flux", "--prompt a --guidance-scale 3 --negative-prompt b", "leave --negative-prompt out"),
        ("flux", "--guidance-scale 3", "makes images from text: .* with --prompt"),
        ("sd3", "--prompt a --height 7", "height must be a multiple of"),
    ],
)
def test_what_a_family_does_not_take(
    model: str, options: str, message: str, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", folder(model), *options.split(), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)
    assert not (tmp_path / "out").exists()


def test_a_look_ahead_of_another_family_is_refused(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder("sd3_lcm")
    asked = ("--prompt", "a", "--device", "cpu", "--out", tmp_path / "out")
    assert run("tilt", folder("sana"), *REWARD, "--lookahead-map", other, *asked) == 2
    error = capsys.readouterr().err
    assert f"--lookahead-map {other} is of family sd3, the export of family sana" in error
    assert error.count("\n") == 1


def test_a_size_is_refused_where_there_is_but_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", "clock-map", "--height", "64", "--out", tmp_path / "out") == 2
    assert "makes samples of one size; leave --height out" in capsys.readouterr().err
