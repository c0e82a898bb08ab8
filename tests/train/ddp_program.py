"""Trains as ``python -m train`` does, and keeps what each rank drew, saw and computed.

    python ddp_program.py OUT_DIR distill CONFIG.yaml key=value ...

Step 0 uses lmd and step 1 lsd, the two objectives with a forward-mode derivative.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import train.module
from train.__main__ import main
from train.losses import OBJECTIVES
from train.module import FlowMapModule

out, seen = Path(sys.argv[1]), []


class Recording(FlowMapModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        chosen = OBJECTIVES[("lmd", "lsd")[self.global_step % 2]]

        def objective(student: Any, teacher: Any, path: Any, times: Any, cond: Any) -> Any:
            seen.append({"path": tuple(path), "times": tuple(times), "cond": dict(cond or {})})
            return chosen(student, teacher, path, times, cond)

        self.objective = objective
        return super().training_step(batch, batch_idx)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        named = self.student.named_parameters()
        seen[-1]["gradients"] = {n: p.grad.clone() for n, p in named if p.grad is not None}
        super().configure_gradient_clipping(*args, **kwargs)

    def on_train_end(self) -> None:
        weights = {name: p.detach().clone() for name, p in self.student.named_parameters()}
        content = {"steps": seen, "weights": weights, "ema": self.ema.state_dict()}
        torch.save(content, out / f"rank{self.global_rank}.pt")


if __name__ == "__main__":
    import train.build

    train.build.FlowMapModule = Recording  # type: ignore[misc]
    sys.exit(main(sys.argv[2:]))
