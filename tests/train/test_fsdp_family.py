"""Sharded students of a diffusers pipeline: gradients, weights and averages are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmtt.models.diffusers.pretrained import FAMILIES

pytest.importorskip("diffusers")
pytest.importorskip("peft")

PROGRAM = Path(__file__).with_name("fsdp_family_program.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_full_training_on_two_processes(family, run_python):
    """Adapters share the teacher's weights, in pieces too; a student trained in full has its own."""
    done = run_python(PROGRAM, family, timeout=1500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {f"{kind} {rank}" for kind in ("lora", "full", "lora on half") for rank in (0, 1)}
    for name, about in found.items():
        errors = {key: about[key] for key in ("gradients", "weights", "ema")}
        # In half precision a batch is rounded otherwise than its halves.
        assert max(errors.values()) < (2e-2 if "half" in name else 1e-4), (name, errors)
        assert about["moved"] > 1e-3 and about["pieces"] > 20 and about["frozen pieces"] > 20
        assert about["teacher moved"] < 1e-6
