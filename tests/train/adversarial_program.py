"""Trains as ``python -m train`` does, and keeps what each rank saw and what became of its discriminator.

python adversarial_program.py OUT_DIR distill CONFIG.yaml key=value ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import train.build
from train.__main__ import main
from train.module import FlowMapModule

out, seen = Path(sys.argv[1]), []


class Recording(FlowMapModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        chosen = self.objective

        def objective(student: Any, teacher: Any, path: Any, times: Any, cond: Any) -> Any:
            seen.append({"path": tuple(path), "times": tuple(times)})
            return chosen(student, teacher, path, times, cond)

        self.objective = objective  # type: ignore[assignment]
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self.objective = chosen

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        named = self.student.named_parameters()
        seen[-1]["gradients"] = {n: p.grad.clone() for n, p in named if p.grad is not None}
        super().configure_gradient_clipping(*args, **kwargs)

    def on_train_end(self) -> None:
        assert self.adversarial is not None
        content = {"steps": seen, "discriminator": self.adversarial.discriminator.state_dict()}
        torch.save(content, out / f"rank{self.global_rank}.pt")


if __name__ == "__main__":
    train.build.FlowMapModule = Recording  # type: ignore[misc]
    sys.exit(main(sys.argv[2:]))
