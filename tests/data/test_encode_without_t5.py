# ruff: noqa: F811 (fixtures of another folder)
"""SD3 without its T5: zeros stand in for what that would say of a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.__main__ import main
from data.module import open_batches
from data.shared import read_shared
from fmtt.__main__ import main as fmtt_main
from fmtt.models.diffusers.pretrained import encode_prompts, load_pipeline
from tests.models.diffusers.conftest import WIDTH, folder, quiet  # noqa: F401 (fixtures)

Folder = Callable[[str], str]


def test_conditions_are_the_pipelines(folder: Folder, tmp_path: Path, capsys: Any):
    where, captions = folder("sd3_without_t5"), ["abc", "abcdefghijkl"]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    encode = ["encode", "--captions", str(tmp_path / "captions.txt"), "--model", where, "--steps", "1"]
    encode += ["--height", "8", "--width", "8", "--dtype", "float32", "--guidance-scale", "2"]
    assert main([*encode, "--max-sequence-length", "6", "--out", str(tmp_path / "out")]) == 0
    assert "1 of 2 captions are longer than the 8 tokens" in capsys.readouterr().out

    whole = load_pipeline(where)
    assert whole.transformer.dtype == torch.float32
    cond = encode_prompts(whole, captions, guidance_scale=2.0, max_sequence_length=6)
    assert cond["prompt_embeds"].shape == (2, 8 + 6, 2 * WIDTH)
    assert not cond["prompt_embeds"][:, 8:].any() and bool(cond["prompt_embeds"][:, :8].any())
    batch = open_batches(tmp_path / "out", 2).batch(0)
    assert batch.cond is not None and bool(batch.x.isfinite().all())
    rows = [
        int((batch.cond["pooled_prompt_embeds"] - row).norm(dim=1).argmin())
        for row in cond["pooled_prompt_embeds"]
    ]
    for name, value in batch.cond.items():
        torch.testing.assert_close(value[rows], cond[name], rtol=0, atol=1e-5)
    for name, value in read_shared(tmp_path / "out").items():
        torch.testing.assert_close(value, cond[name][:1], rtol=0, atol=1e-5)


def test_the_pipeline_draws_from_it(folder: Folder):
    steered = pytest.importorskip("fmtt.pipeline").FMTTPipeline.from_pretrained(folder("sd3_without_t5"))
    options: dict[str, Any] = {"height": 8, "width": 8, "max_sequence_length": 6, "num_inference_steps": 2}
    out = steered("a cat", guidance_scale=2.0, output_type="pt", **options)
    assert out.images.shape == (1, 3, 8, 8) and bool(out.images.isfinite().all())


@pytest.mark.parametrize("guidance", [[], ["--guidance-scale", "2"]])
def test_the_command_line_draws_from_it(guidance: list[str], folder: Folder, tmp_path: Path):
    sample = ["sample", folder("sd3_without_t5"), "--prompt", "a cat", "--num-samples", "1", "--steps", "2"]
    assert fmtt_main([*sample, *guidance, "--device", "cpu", "--out", str(tmp_path / "s")]) == 0
    assert json.loads((tmp_path / "s" / "summary.json").read_text())["command"] == "sample"
