# ruff: noqa: F811 (fixtures of another folder)
"""Encoding: which samples are found, that their latents and conditions are the pipeline's, and restarting."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.__main__ import main
from data.encode_source import CaptionFile, Damaged, PairShards
from data.module import open_batches
from data.shared import SHARED_NAME, read_shared
from fmtt.errors import UserError
from fmtt.models.diffusers.decoder import Decoder
from fmtt.models.diffusers.pretrained import encode_prompts, load_pipeline
from tests.models.diffusers.conftest import diffusers, folder, quiet, transformers  # noqa: F401 (fixtures)

Image = pytest.importorskip("PIL.Image")
Folder = Callable[[str], str]
SMALL = ("--height", "8", "--width", "8", "--dtype", "float32", "--max-sequence-length", "6")


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((10, 14, 3), value, np.uint8)).save(out, "png")
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Seven pairs in two shards, and one image without a caption."""
    shards = tmp_path / "pairs"
    first = {f"{i}.png": png(30 * i) for i in range(4)}
    texts = {f"{i}.txt": f"number {i}\n".encode() for i in range(4)}
    write_tar(shards / "a.tar", dict(sorted((first | texts).items())))
    second = {"x.PNG": png(200), "x.json": b'{"caption": "from json"}', "y.jpg": png(7), "y.txt": b"why"}
    write_tar(shards / "b.tar", {**second, "z.png": png(1), "z.txt": b"zed", "alone.png": png(0)})
    return shards


def test_pairs_are_found_and_read(pairs: Path):
    source = PairShards(pairs)
    assert len(source) == 7 and source.incomplete == 1
    assert [source.name(i) for i in (0, 4)] == ["a.tar/0", "b.tar/x"]
    assert [source.caption(i) for i in (3, 4, 5)] == ["number 3", "from json", "why"]
    image = source.image(2, 6, 8)
    assert image.shape == (3, 6, 8) and torch.allclose(image, torch.tensor(60 / 255))
    with pytest.raises(UserError, match="no folder of webdataset shards"):
        PairShards(pairs / "nowhere")
    write_tar(pairs / "c.tar", {"k.png": b"not an image", "k.txt": b"c", "l.png": png(1), "l.json": b"[]"})
    source = PairShards(pairs)
    with pytest.raises(Damaged, match="c.tar/k: no readable image"):
        source.image(7, 6, 8)
    with pytest.raises(Damaged, match="c.tar/l: no caption .its .json has no text"):
        source.caption(8)


def test_latents_and_conditions_are_the_pipelines(pairs: Path, folder: Folder, tmp_path: Path, capsys: Any):
    out, where = tmp_path / "out", folder("sd3")
    arguments = ["encode", str(pairs), "--model", where, "--out", str(out), "--shard-size", "3", *SMALL]
    assert main([*arguments, "--negative-prompt", "bad"]) == 0
    assert "7 samples in" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0

    pipeline = load_pipeline(where)
    source = PairShards(pairs)
    captions = [source.caption(i) for i in range(7)]
    cond = encode_prompts(
        pipeline, captions, guidance_scale=2.0, negative_prompt="bad", max_sequence_length=6
    )
    with torch.no_grad():
        x = Decoder(pipeline.vae).encode(torch.stack([source.image(i, 8, 8) for i in range(7)]))
    batch = open_batches(out, 7).batch(0)
    assert batch.cond is not None and batch.cond.keys() == {"prompt_embeds", "pooled_prompt_embeds"}
    order = [int((batch.x - one).flatten(1).norm(dim=1).argmin()) for one in x]
    assert sorted(order) == list(range(7))
    torch.testing.assert_close(batch.x[order], x, rtol=0, atol=1e-5)
    for name, value in batch.cond.items():
        torch.testing.assert_close(value[order], cond[name], rtol=0, atol=1e-5)
    shared = read_shared(out)
    assert shared.keys() == {"negative_prompt_embeds", "negative_pooled_prompt_embeds"}
    for name, value in shared.items():
        torch.testing.assert_close(value, cond[name][:1], rtol=0, atol=1e-5)

    # A lost shard is written again, the others stay; other settings are another set.
    shards = sorted(out.glob("*.tar"))
    before = {path.name: path.read_bytes() for path in shards}
    shards[1].unlink()
    assert main([*arguments, "--negative-prompt", "bad"]) == 0
    assert "2 kept" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))} == before
    negative = (out / SHARED_NAME).read_bytes()
    assert main(arguments) == 2 and "choose another folder" in capsys.readouterr().err
    assert (out / SHARED_NAME).read_bytes() == negative


def test_parts_make_the_whole(folder: Folder, tmp_path: Path):
    """Noise is a function of the seed and the sample's number, however the work is shared out."""
    (tmp_path / "captions.txt").write_text("".join(f"caption {i}\n\n" for i in range(5)))
    options = ["--captions", str(tmp_path / "captions.txt"), "--model", folder("flux"), *SMALL]
    options += ["--latents", "noise", "--seed", "3", "--shard-size", "2"]
    assert main(["encode", *options, "--out", str(tmp_path / "whole"), "--batch-size", "1"]) == 0
    parted = ["encode", *options, "--out", str(tmp_path / "parts"), "--parts", "2"]
    assert main([*parted, "--part", "1"]) == 0
    assert not (tmp_path / "parts" / "index.json").exists()
    assert main([*parted, "--part", "0"]) == 0
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.tar"))
    assert len(names) == 3 and not (tmp_path / "parts" / SHARED_NAME).exists()
    whole, parts = (open_batches(tmp_path / name, 5).batch(0) for name in ("whole", "parts"))
    assert torch.equal(whole.x, parts.x) and whole.cond is not None and parts.cond is not None
    for name, value in whole.cond.items():
        torch.testing.assert_close(value, parts.cond[name], rtol=0, atol=1e-5)
    assert abs(float(whole.x.mean())) < 4 / whole.x.numel() ** 0.5
    assert json.loads((tmp_path / "parts" / "summary-00001-of-00002.json").read_text())["encoded"] == 2


def test_generated_latents_are_the_models(folder: Folder, tmp_path: Path, capsys: Any):
    (tmp_path / "captions.txt").write_text("a cat\n")
    options = ["--captions", str(tmp_path / "captions.txt"), "--model", folder("sana"), *SMALL]
    options += ["--steps", "2", "--guidance-scale", "2", "--out", str(tmp_path / "out")]
    assert main(["encode", *options]) == 0
    batch = open_batches(tmp_path / "out", 1).batch(0)
    assert batch.x.shape == (1, 4, 4, 4) and bool(batch.x.isfinite().all())
    assert len(CaptionFile(tmp_path / "captions.txt")) == 1
    flux = ["encode", *options, "--model", folder("flux"), "--guidance-scale", "3"]
    assert main(flux) == 2 and "choose another folder" in capsys.readouterr().err


def test_damaged_samples_are_replaced_and_counted(pairs: Path, folder: Folder, tmp_path: Path, capsys: Any):
    write_tar(pairs / "c.tar", {"k.png": b"not an image", "k.txt": b"c", "l.png": png(90), "l.txt": b"l"})
    arguments = ["encode", str(pairs), "--model", folder("sana"), "--out", str(tmp_path / "out"), *SMALL]
    assert main(arguments) == 2
    assert "1 of 9 samples cannot be read, more than --max-bad-fraction" in capsys.readouterr().err
    assert main([*arguments, "--max-bad-fraction", "0.2"]) == 0
    assert "c.tar/k: no readable image" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 0


@pytest.fixture
def loud() -> Iterator[list[str]]:
    """What diffusers and transformers log, with bars and warnings on as they are by default."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logs = [diffusers.utils.logging, transformers.utils.logging]
    for log in logs:
        log.enable_progress_bar()
        log.set_verbosity_warning()
        log.add_handler(handler)
    yield said
    for log in logs:
        assert log.is_progress_bar_enabled() and log.get_verbosity() == logging.WARNING
        log.disable_progress_bar()
        log.set_verbosity_error()
        log.remove_handler(handler)


@pytest.mark.parametrize(("name", "cut"), [("sd3", 2), ("sana", 3)])  # sana's tokens begin with a special one
def test_captions_that_are_cut_are_counted_and_nothing_else_is_said(
    name: str, cut: int, folder: Folder, tmp_path: Path, capsys: Any, loud: list[str]
):
    (tmp_path / "captions.txt").write_text("abc\nabcdef\nabcdefg\nabcdefghijkl\n")
    options = ["--captions", str(tmp_path / "captions.txt"), "--model", folder(name), *SMALL]
    capsys.readouterr()
    assert main(["encode", *options, "--latents", "noise", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and loud == []
    assert f"{cut} of 4 captions are longer than the 6 tokens that are read, and are cut; raise" in shown.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["captions_cut"], summary["max_sequence_length"]) == (cut, 6)


def test_wrong_arguments_are_one_line(pairs: Path, folder: Folder, tmp_path: Path, capsys: Any):
    base = ["encode", str(pairs), "--out", str(tmp_path / "out")]
    sana = [*base, "--model", folder("sana")]
    cases = [
        ([*base, "--model", str(tmp_path / "gone")], "there is no folder"),
        ([*sana, "--latents", "noise"], "go with --captions"),
        ([*sana, "--captions", "x"], "give either a folder"),
        ([*sana, "--height", "9"], "height must be a multiple of"),
        ([*sana, "--dtype", "int8"], "--dtype must be one of"),
        ([*sana, "--part", "2", "--parts", "2"], "--part must be I"),
        ([*sana, "--batch-size", "0"], "--batch-size must be at least 1"),
        ([*sana, "--device", "tpu"], "--device tpu cannot be used"),
        ([*sana, "--device", "meta"], "--device meta cannot be used (meta is neither cpu nor cuda)"),
        ([*base, "--model", ""], "--model is empty"),
        ([*sana, "--max-sequence-length", "0"], "--max-sequence-length must be at least 1"),
        ([*sana, "--max-sequence-length", "-3"], "--max-sequence-length must be at least 1"),
        ([*sana, "--max-sequence-length", "100000"], "--max-sequence-length must lie in 1 to 512"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
