"""The text side of a question: chat template, image placeholders, and the tokens of an answer.

Token ids and everything that depends on the images' sizes only come from the model's own processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards.learned import loading
from fmtt.rewards.learned.preprocess import TOLERANCE, as_array, random_picture
from fmtt.rewards.learned.vlm_pixels import Pixels, family

PER_TOKEN = {"attention_mask": 1, "token_type_ids": 1, "mm_token_type_ids": 0}
"""An answer's tokens in each field that runs along the text: attended to, a continuation, no image."""
UNUSED = ("pixel_values", "labels")


class Layout(NamedTuple):
    """A question ready to be repeated over a batch.

    Attributes:
        inputs: the model's inputs for one sample, but for ``pixel_values``.
        answers: token ids, one tuple for each answer asked about.
    """

    inputs: dict[str, Tensor]
    answers: tuple[tuple[int, ...], ...]

    def repeated(self, batch: int, continuation: Sequence[int]) -> dict[str, Tensor]:
        """The inputs for ``batch`` samples, with the tokens of an answer begun."""
        out = dict(self.inputs)
        if continuation:
            length = out["input_ids"].shape[1]
            for name, value in self.inputs.items():
                if name == "input_ids":
                    tail = value.new_tensor([list(continuation)])
                elif name in PER_TOKEN:
                    tail = value.new_full((1, len(continuation)), PER_TOKEN[name])
                elif value.shape[:2] == (1, length):
                    raise UserError(
                        f"this model's processor gives {name!r}, which is not known to go on over an answer"
                    )
                else:
                    continue
                out[name] = torch.cat([value, tail], dim=1)
        return {name: value.repeat(batch, *[1] * (value.ndim - 1)) for name, value in out.items()}


class Reader:
    """The processor of a vision-language model, for questions about images.

    Built of image processor and tokenizer alone: the video part needs torchvision and is not used here.

    Args:
        where, revision: folder or hub id of the model, and its revision.

    Raises:
        UserError: when the model is of no supported family, or a file or package is missing.
    """

    def __init__(self, where: str, revision: str) -> None:
        config = loading.load(where, lambda t: t.AutoConfig.from_pretrained(where, revision=revision))
        self.family: type[Pixels] = family(config.model_type, where)
        images, tokens = loading.image_processor(where, revision), loading.tokenizer(where, revision)
        parts = {"image_processor": images, "tokenizer": tokens}

        def make(package: Any) -> Any:
            named = package.models.auto.processing_auto.PROCESSOR_MAPPING[type(config)]
            given, _ = named.get_processor_dict(where, revision=revision)
            return _images_only(named).from_args_and_dict(
                [parts.get(p) for p in named.get_attributes()], given
            )

        self.processor = loading.load(where, make)
        self.tokenizer, self.image_processor, self.where = self.processor.tokenizer, images, where
        self.template = self.processor.chat_template or getattr(self.tokenizer, "chat_template", None)

    def layout(self, text: str, answers: Sequence[str], sizes: Sequence[tuple[int, int]]) -> Layout:
        """Token ids of a question about images of ``sizes`` (H, W), and of its answers.

        Raises:
            UserError: when our pixel values would differ from the processor's, or an answer has no token.
        """
        prompt = self._render(text, len(sizes), None)
        pictures = [random_picture(*size) for size in sizes]
        with loading.one_line(self.where):
            out = dict(
                self.processor(images=[list(map(as_array, pictures))], text=[prompt], return_tensors="pt")
            )
        self._check_pixels(pictures, out["pixel_values"])
        tokens = [self._answer_ids(text, len(sizes), prompt, answer) for answer in answers]
        kept = {
            name: value for name, value in out.items() if name not in UNUSED and isinstance(value, Tensor)
        }
        return Layout(kept, tuple(tokens))

    def _render(self, text: str, images: int, answer: str | None) -> str:
        if self.template is None:  # the processor itself puts what a question needs around the text
            return self.processor.image_token * images + text
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        with loading.one_line(self.where):
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, add_generation_prompt=answer is None, tokenize=False
            )

    def _answer_ids(self, text: str, images: int, prompt: str, answer: str) -> tuple[int, ...]:
        """The answer's tokens, with the space before it that the chat template puts there."""
        begun = answer
        if self.template is not None:
            whole = self._render(text, images, answer)
            tail = whole.removeprefix(prompt)
            if tail != whole and answer in tail:
                begun = tail[: tail.index(answer) + len(answer)]
        ids = self.tokenizer(begun, add_special_tokens=False).input_ids
        if not ids or self.tokenizer.unk_token_id in ids:
            raise UserError(
                f"the answer {answer!r} cannot be written in the tokens of {self.where}; give another"
            )
        return tuple(ids)

    def _check_pixels(self, pictures: Sequence[Tensor], own: Tensor) -> None:
        ours = self.family(self.image_processor, rounding=True)([picture[None] for picture in pictures])
        if ours.shape != own.shape or float((ours - own).abs().max()) > TOLERANCE:
            raise UserError(
                f"the differentiable preprocessing of {self.where} differs from its own processor: this "
                "processor's settings or this version of transformers are not supported"
            )


def _images_only(processor: type) -> type:
    """``processor`` allowed to have no video part."""

    class ImagesOnly(processor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    ImagesOnly.__name__ = processor.__name__
    return ImagesOnly
