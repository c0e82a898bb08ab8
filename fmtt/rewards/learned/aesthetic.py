"""The LAION aesthetic predictor: a linear head on CLIP's normalised image features."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from fmtt.png import DEFAULT_RANGE
from fmtt.rewards.description import Description
from fmtt.rewards.learned import head as heads
from fmtt.rewards.learned import loading
from fmtt.rewards.learned.base import LearnedReward
from fmtt.rewards.learned.contrastive import pooled
from fmtt.rewards.learned.preprocess import ResizeAndCrop


class Aesthetic(LearnedReward):
    """LAION's aesthetic score, about 1 to 10, of the image alone.

    Schuhmann 2022 (github.com/christophschuhmann/improved-aesthetic-predictor). The released heads are
    pickles; convert one to safetensors with its names as they are.

    Args:
        head: safetensors file of ``layers.N.weight`` and ``layers.N.bias``, or ``weight`` and ``bias``.
        model: folder or hub id of the CLIPModel that the head was trained on, in safetensors.
        revision: branch, tag or commit on the hub.
        value_range, dtype, device, max_batch, rounding: see :class:`LearnedReward`. The head is float32, or
            float64 where the network is.

    Raises:
        UserError: when a package or file is missing, or the head is pickled or belongs to another network.
    """

    description = Description("LAION aesthetic score", True, space="pixels")

    def __init__(
        self,
        head: str,
        model: str = "openai/clip-vit-large-patch14",
        revision: str = "main",
        value_range: tuple[float, float] = DEFAULT_RANGE,
        dtype: str = "float32",
        device: str = "cpu",
        max_batch: int = 16,
        rounding: bool = False,
    ) -> None:
        super().__init__(None, value_range, dtype, device, max_batch, rounding)
        tensors = loading.tensors(head)
        self.model = loading.model("CLIPModel", model, revision, self.dtype, device)
        self.head = heads.build(tensors, self.model.config.projection_dim, head)
        self.head.to(device, heads.precision(self.dtype))
        self.processor = loading.image_processor(model, revision)
        self.preprocess = ResizeAndCrop(self.processor, rounding=rounding)

    def _score(self, rgb: Tensor, index: Tensor) -> Tensor:
        self._checked_once((rgb.shape[-2], rgb.shape[-1]), self.processor)
        pixels = self.preprocess(rgb).to(self.dtype)
        features = pooled(self.model.get_image_features(pixel_values=pixels))
        return self.head(normalize(features.to(heads.precision(self.dtype)), dim=-1)).squeeze(-1)
