"""A pipeline's student in training: what is trained, kept and averaged; and from a run to pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fmtt
from fmtt.__main__ import main as fmtt_main
from fmtt.models.diffusers.decoder import Decoder
from fmtt.models.diffusers.pretrained import FAMILIES, encode_prompts, load_flow_map, load_pipeline
from fmtt.models.diffusers.student import network_of
from tests.models.diffusers.conftest import conditions, diffusers
from tests.train.diffusers.conftest import SHAPE
from train.__main__ import main
from train.build import build_module
from train.checkpoints import checkpoints, read_checkpoint
from train.config import Config

Settings = Callable[..., Config]
Words = Callable[..., list[str]]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_averaged_and_kept(name: str, full: bool, settings: Settings, folder: Any):
    module = build_module(settings(name, full=full), "distill", SHAPE)
    trained = {key for key, p in module.student.named_parameters() if p.requires_grad}
    assert module.ema.averages[0].keys() == trained
    kept = set(module.state_dict())
    base = {key for key in kept if ".transformer." in key and "lora_" not in key}
    assert bool(base) is full, "a frozen base is in no checkpoint"
    assert all("lora_" in key or "second_time" in key for key in trained) or full
    for value in module.student.parameters():
        if value.requires_grad:
            value.data += 0.1 * torch.randn_like(value)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    module.load_state_dict(state)  # strict, though the base is missing
    # With the adapters trained, the teacher is still the pipeline's transformer, bit for bit.
    x, t, cond = torch.randn(2, *SHAPE), torch.tensor([0.2, 0.7]), conditions(name, 2)
    plain = load_flow_map(folder(name), latents=SHAPE)
    assert module.teacher is not None
    with torch.no_grad():
        assert torch.equal(module.teacher.velocity(x, t, cond), plain.velocity(x, t, cond))
        assert not torch.allclose(module.student.velocity(x, t, cond), plain.velocity(x, t, cond), atol=1e-3)
    if not full:
        assert network_of(module.student).transformer is network_of(module.teacher).transformer  # type: ignore[arg-type]


def test_an_untrained_student_is_its_guided_teacher(settings: Settings):
    """Guidance is the teacher's: held negative conditions, and each sample's own w where a range is given."""
    for name in ("sd3", "sana", "lumina2"):
        module = build_module(settings(name), "distill", SHAPE)
        assert module.teacher is not None
        plain = {k: v for k, v in conditions(name, 3).items() if not k.startswith("negative_")}
        del plain["guidance_scale"]
        cond = module.guidance.draw(plain, 3, torch.Generator().manual_seed(0), "cpu")
        assert cond is not None and ("guidance_scale" in cond) is (name != "sd3")
        x, s = torch.randn(3, *SHAPE), torch.tensor([0.1, 0.5, 0.9])
        with torch.no_grad():
            own, its = module.student.velocity(x, s, cond), module.velocity()(x, s, cond)
            unguided = {**cond, "guidance_scale": torch.ones(3)}
            assert not torch.allclose(module.velocity()(x, s, unguided), its, atol=1e-3)
        assert torch.equal(own, its)


def pictures(flow_map: Any, where: str, noise: torch.Tensor, scale: float) -> torch.Tensor:
    """Two steps of the map from ``noise``, decoded."""
    pipeline = load_pipeline(where, transformer=None)
    network = network_of(flow_map)
    cond = encode_prompts(pipeline, ["a cat"], network=network, guidance_scale=scale, max_sequence_length=6)
    cond = {key: value.expand(len(noise), *value.shape[1:]) for key, value in cond.items()}
    with torch.no_grad():
        x = flow_map(flow_map(noise, 0.0, 0.5, cond), 0.5, 1.0, cond)
        return Decoder(pipeline.vae)(x)


def check_run(run: str, name: str, where: str, out: Path, *, full: bool) -> None:
    """Every way to export the run gives the same pictures, and FMTTPipeline tilts with it."""
    from fmtt.pipeline import FMTTPipeline

    ways = [[], ["--diffusers"]] if full else [[], ["--merge"], ["--diffusers"], ["--merge", "--diffusers"]]
    noise, scale = torch.randn(2, *SHAPE), 3.0
    options: dict[str, Any] = {"guidance_scale": scale, "max_sequence_length": 6, "height": 8, "width": 8}
    options |= {"num_inference_steps": 2, "output_type": "pt"}
    wanted = None
    for number, way in enumerate(ways):
        target = out / f"export{number}"
        assert main(["export", run, str(target), *way]) == 0
        whole = "--diffusers" in way
        flow_map = fmtt.load(target)
        seen = pictures(flow_map, where, noise, scale)
        wanted = seen if wanted is None else wanted
        torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-4)
        pipe = FMTTPipeline.from_pretrained(target if whole else where)
        if not whole:
            pipe.flow_map = flow_map
        out_pipe = pipe("a cat", latents=noise, num_images_per_prompt=2, **options)
        torch.testing.assert_close(out_pipe.images, wanted, rtol=0, atol=1e-4)
        if whole:
            plain = getattr(diffusers, FAMILIES[name].names.pipeline).from_pretrained(target)
            merged = full or "--merge" in way
            shift = dict(plain.scheduler.config).get("use_dynamic_shifting", False)
            own = type(plain.scheduler).__name__ == FAMILIES[name].names.scheduler and not shift
            assert (own and plain.scheduler.config.shift == 1) or not merged
    tilted = pipe("a cat", reward=lambda x, cond: x.mean((1, 2, 3)), num_particles=4, **options)
    assert bool(tilted.log_weights.isfinite().all()) and tilted.images.shape == (4, 3, 8, 8)
    untrained = pictures(load_flow_map(where, latents=SHAPE), where, noise, scale)
    assert wanted is not None
    assert not torch.allclose(wanted, untrained, atol=1e-4), "training has moved the map"


def test_the_base_pipeline_is_not_replaced(
    yaml: Path, words: Words, folder: Any, tmp_path: Path, capsys: Any
):
    base = tmp_path / "base"
    shutil.copytree(folder("sd3"), base)
    assert main(["distill", str(yaml), *words("sd3")]) == 0
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(base), "--merge", "--diffusers"]) == 2
    error = capsys.readouterr().err
    assert "is a pipeline without a flow map" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before


def test_a_run_to_pictures(yaml: Path, words: Words, folder: Any, tmp_path: Path, capsys: Any):
    assert main(["distill", str(yaml), *words("sd3")]) == 0
    run = str(tmp_path / "run")
    assert "derivative: jvp agrees with float64 finite differences" in capsys.readouterr().out
    content = read_checkpoint(checkpoints(Path(run) / "checkpoints")[-1][1])
    assert not any("base_layer" in key for key in content["state_dict"])
    check_run(run, "sd3", folder("sd3"), tmp_path, full=False)
    config = json.loads((tmp_path / "export0" / "config.json").read_text())
    assert config["trained"]["teacher"] == "pipeline" and config["trained"]["steps"] == 2
    assert "flow map" in (tmp_path / "export0" / "README.md").read_text()

    sample = ["sample", str(tmp_path / "export0"), "--device", "cpu", "--out", str(tmp_path / "s")]
    assert fmtt_main([*sample, "--prompt", "a cat", "--num-samples", "2", "--steps", "1"]) == 0
    assert (tmp_path / "s" / "samples.png").is_file()
    capsys.readouterr()
    for arguments, message in (
        (sample, "makes images from text: sample, tilt"),
        ([*sample, "--prompt", "a", "--label", "1"], "not class-conditional"),
        (["sample", "clock-map", "--prompt", "a", "--out", str(tmp_path / "s")], "takes no text"),
    ):
        assert fmtt_main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    # It goes on where it stopped, and not with another teacher or other adapters.
    assert main(["distill", str(yaml), *words("sd3", "max_steps=3")]) == 0
    assert "continuing from step 2" in capsys.readouterr().out
    for change in ("teacher.guidance=3", "student.lora.rank=3", "student.lora=null"):
        assert main(["distill", str(yaml), *words("sd3", "max_steps=4", change)]) == 2
        assert "was started with" in capsys.readouterr().err


def test_mistakes_are_one_line(
    yaml: Path, words: Words, folder: Any, shards: Any, tmp_path: Path, capsys: Any
):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "transformer").mkdir()
    (tmp_path / "bare" / "transformer" / "config.json").write_text(
        '{"_class_name": "FluxTransformer2DModel"}'
    )
    cases = [
        ("flux", "teacher.family=sd3", "holds a FluxTransformer2DModel, not family sd3: set family to flux"),
        (
            "flux",
            "teacher.family=fluks",
            "one of flux, sd3, sana, lumina2, sana_sprint, got 'fluks'; did you",
        ),
        ("flux", f"teacher.pretrained={tmp_path / 'gone'}", "there is no folder"),
        ("flux", f"teacher.pretrained={tmp_path / 'bare'}", "has no transformer/*.safetensors"),
        ("flux", "teacher.guidance=[]", "teacher.guidance: this flux model is conditioned"),
        ("flux", f"teacher.pretrained={folder('schnell')}", "a few-step model has no velocity"),
        ("flux", f"teacher.pretrained={folder('flux_lcm')}", "a few-step model has no velocity"),
        ("sana", f"teacher.pretrained={folder('sana_sprint')}", "set family to sana_sprint"),
        ("flux", f"data.source={shards('sd3')}", "has width 32, this flux model needs 16"),
        ("sd3", f"data.source={shards('flux')}", "needs the negative prompt's conditions"),
        ("flux", "data.source=clock", "takes latents of shape (4, H, W) with H and W divisible by 2"),
        ("flux", "teacher.dtype=bf16", "teacher.dtype must be one of float32, bfloat16, float16"),
        ("flux", "teacher.pretraind=x", "teacher: unknown key 'pretraind'"),
        ("flux", "student.second_time=zero", "second_time must be one of"),
        ("flux", "student.lora.targets=[nothing]", "lora.targets"),
        ("flux", "student.init=scratch", "the pipeline's own with teacher.pretrained"),
        ("flux", "guidance.method=cfg", "a pipeline is guided by teacher.guidance"),
        ("flux", "student.own_guidance=true", "family flux has a guidance embedding already"),
        ("flux", "teacher=clock-teacher", "student.lora is for students of teacher"),
    ]
    for name, change, message in cases:
        assert main(["distill", str(yaml), *words(name, change)]) == 2, change
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, change
    assert main(["pretrain", str(yaml), *words("flux", "objective.name=flow_matching")]) == 2
    assert "is for distill" in capsys.readouterr().err
