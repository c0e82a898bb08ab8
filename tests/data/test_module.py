"""Sources by name, computed sets without files, and exact resume through Lightning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.progress import _ProcessedTracker

from data.module import DataModule, open_batches
from data.procedural import PROCEDURAL
from data.procedural_batches import ProceduralBatches
from data.shards import ShardBatches
from data.write_shards import write_procedural
from fmtt.errors import UserError


def test_a_source_is_a_set_by_name_or_a_folder(tmp_path: Path):
    write_procedural("clock", tmp_path / "clock", 4)
    assert isinstance(open_batches("clock", 2), ProceduralBatches)
    assert isinstance(open_batches(str(tmp_path / "clock"), 2), ShardBatches)
    with pytest.raises(UserError, match="neither a folder of shards nor a computed set; sets: clock"):
        open_batches("clocks", 2)
    with pytest.raises(UserError, match=r"index.json is missing"):
        open_batches(tmp_path, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_endless_set_never_repeats_a_sample(world_size: int):
    ranks = [
        ProceduralBatches("mixture", 8, seed=1, rank=r, world_size=world_size) for r in range(world_size)
    ]
    rows = torch.stack([torch.cat([ranks[r].batch(k).x for k in range(5)]) for r in range(world_size)], 1)
    assert torch.equal(rows.flatten(0, 1), PROCEDURAL["mixture"].batch(torch.arange(40 * world_size), 1).x)
    assert ranks[0].batches_per_epoch is None


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("name", ["mixture-labelled", "clock"])
def test_a_finite_computed_set_equals_its_shards(tmp_path: Path, name: str, cache_bytes: int):
    write_procedural(name, tmp_path, 50, seed=4)
    for rank in (0, 1):
        options: dict[str, Any] = {"seed": 4, "rank": rank, "world_size": 2, "cache_bytes": cache_bytes}
        shards = open_batches(tmp_path, 7, **options)
        computed = open_batches(name, 7, num_samples=50, **options)
        assert shards.batches_per_epoch == computed.batches_per_epoch == 3
        for step in (0, 1, 5, 2, 7):
            a, b = shards.batch(step), computed.batch(step)
            assert torch.equal(a.x, b.x)
            assert (a.cond is None) == (b.cond is None)
            if a.cond is not None and b.cond is not None:
                assert torch.equal(a.cond["label"], b.cond["label"])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "num_samples": 0}])
def test_wrong_sizes_are_refused(options: dict[str, int]):
    with pytest.raises(UserError, match="must be at least 1"):
        ProceduralBatches("clock", **options)  # type: ignore[arg-type]


class Recorder(L.LightningModule):
    """Remembers the batches it is trained on, and can be interrupted."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []
        self.interrupt_at = interrupt_at

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if len(self.seen) == self.interrupt_at:
            raise RuntimeError("interrupted")
        self.seen.append(batch.x.clone())
        return (self.weight - batch.x).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    recorder: Recorder, data: DataModule, folder: Path, max_steps: int, every: int, resume: Path | None = None
):
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=resume, weights_only=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["shards", "checkerboard"])
def test_lightning_resumes_with_the_very_next_batch(tmp_path: Path, source: str):
    if source == "shards":
        write_procedural("mixture", tmp_path / "set", 40, shard_size=8)
        source = str(tmp_path / "set")
    whole = Recorder()
    fit(whole, DataModule(source, 6, seed=2), tmp_path / "a", 17, 100)
    broken = Recorder(interrupt_at=11)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(broken, DataModule(source, 6, seed=2), tmp_path / "b", 17, 4)
    resumed = Recorder()
    checkpoint = tmp_path / "b" / "step=8.ckpt"
    fit(resumed, DataModule(source, 6, seed=2), tmp_path / "c", 12, 3, checkpoint)
    again = Recorder()  # resumed twice, the second time from a step that is no multiple of the first
    fit(again, DataModule(source, 6, seed=2), tmp_path / "d", 17, 100, tmp_path / "c" / "step=12.ckpt")
    seen = broken.seen[:8] + resumed.seen + again.seen
    assert len(whole.seen) == len(seen) == 17
    assert all(torch.equal(a, b) for a, b in zip(whole.seen, seen, strict=True))
    assert torch.equal(whole.weight, again.weight)


def test_each_lightning_rank_gets_its_own_batches():
    seen = []
    for rank in range(2):
        data = DataModule("mixture", 4, num_samples=16)
        stream = iter(on_rank(data, rank, 2).train_dataloader())
        seen += [next(stream).x for _ in range(2)]
    assert len(torch.unique(torch.cat(seen), dim=0)) == 16


def on_rank(data: DataModule, rank: int, world_size: int, passes: int = 0) -> DataModule:
    """The module as a trainer holds it."""
    progress = SimpleNamespace(total=_ProcessedTracker(processed=passes))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, fit_loop=loop)  # type: ignore[assignment]
    return data


def step_rows(data: DataModule, world_size: int, passes: range) -> torch.Tensor:
    """The samples of these passes on all ranks, sorted."""
    rows = torch.cat(
        [
            on_rank(data, r, world_size).train_dataloader().batch(k).x
            for r in range(world_size)
            for k in passes
        ]
    )
    return rows[rows[:, 0].argsort()]


def test_a_run_goes_on_with_other_numbers_of_ranks_and_the_same_samples_in_each_step(tmp_path: Path):
    write_procedural("mixture", tmp_path, 100, shard_size=9)
    whole = DataModule(tmp_path, 3, seed=2)  # four ranks, 12 samples a step
    two = DataModule(tmp_path, 6, seed=2)
    two.load_state_dict(on_rank(whole, 1, 4, passes=5).state_dict())
    for step in range(5, 8):
        assert torch.equal(
            step_rows(two, 2, range(step - 5, step - 4)), step_rows(whole, 4, range(step, step + 1))
        )
    one = DataModule(tmp_path, 3, seed=2, accumulate=4)
    one.load_state_dict(on_rank(two, 0, 2, passes=5 + 3).state_dict())
    for step in range(8, 30):  # over ends of epochs
        first = 4 * (step - 8)
        assert torch.equal(
            step_rows(one, 1, range(first, first + 4)), step_rows(whole, 4, range(step, step + 1))
        )


def test_state_is_refused_under_another_seed_or_global_batch():
    data = DataModule("mixture", 4, seed=1)
    state = data.state_dict()
    assert state == {"passes": 0, "used": 0, "streams": 1, "global_batch": 4, "seed": 1}
    data.load_state_dict({**state, "passes": 9, "used": 36})
    assert data.train_dataloader().layout.start == 36
    other = DataModule("mixture", 8, seed=1)
    other.load_state_dict(state)
    with pytest.raises(UserError, match="x ranks is 8 but the checkpoint was trained with 4"):
        other.train_dataloader()
    with pytest.raises(UserError, match="seed is 2"):
        DataModule("mixture", 4, seed=2).load_state_dict(state)
    with pytest.raises(UserError, match="does not say"):
        data.load_state_dict({"seed": 1})
    assert data.data_shape == (2,)
