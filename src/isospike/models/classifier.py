"""Spiking transformers that classify images or events, as models of transformers."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel

from isospike.errors import RangeError, ShapeError
from isospike.tensors import check_tensor, check_whole

AT_ONCE = 4  # images that a folded network takes at a time on a CPU


class SpikingClassifier(PreTrainedModel):  # type: ignore[misc]
    """What all of them do: check the input, repeat it, classify the rate of the last spikes.

    A subclass builds ``head`` and says what ``encode`` does and by how much it shrinks an image.

    >>> from isospike.models import IntegerNet
    >>> issubclass(IntegerNet, SpikingClassifier)
    True
    """

    main_input_name = "pixel_values"
    base_model_prefix = ""
    head: nn.Linear

    @property
    def stride(self) -> int:
        """Pixels of the input per token, in each direction."""
        raise NotImplementedError

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        """Spikes ``[steps, batch, channels]``, averaged over tokens or of neurons that read this.

        Args:
            frames: ``[1 or steps, batch, height, width, channels]``.
            steps: Number of time steps.

        Returns:
            What the head reads, ``[steps, batch, channels]``.

        Raises:
            NotImplementedError: The subclass does not say.
        """
        raise NotImplementedError

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        steps: int | None = None,
    ) -> ImageClassifierOutput:
        """Scores of images or of event frames.

        Args:
            pixel_values: Images ``[batch, channels, height, width]``, which are the input of every
                step, or frames ``[batch, steps, channels, height, width]``, one a step, of floats
                or counts.
            labels: Classes ``[batch]``, for the loss.
            steps: Number of time steps; None for that of the frames, or of the configuration.

        Returns:
            ``logits [batch, classes]``, the mean over the steps; ``loss``, the mean cross-entropy,
            where labels are given.

        Raises:
            InputError: Something is not a tensor.
            ShapeError: The images have another shape, or frames another number of steps.
            RangeError: There are no steps, other than 1 or D of a model of integer neurons, or a
                label is not one of the classes.
        """
        frames, steps = self.frames(pixel_values, steps)
        logits = self.head(self.encode(frames, steps).mean(0))
        if labels is None:
            return ImageClassifierOutput(logits=logits)
        check_labels(type(self).__name__, labels, logits)
        return ImageClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)

    def frames(self, images: Tensor, steps: int | None) -> tuple[Tensor, int]:
        """What :meth:`encode` reads, and the number of steps, of what :meth:`forward` is given.

        Args:
            images: ``pixel_values``.
            steps: None for the usual.

        Returns:
            Frames, of one step where images repeat, and the number of steps.

        Raises:
            InputError: As of :meth:`forward`.
            ShapeError: As of :meth:`forward`.
            RangeError: As of :meth:`forward`.
        """
        name = type(self).__name__
        check_tensor(name, "pixel_values", images)
        shape, channels, side = tuple(images.shape), self.config.num_channels, self.stride
        fits = len(shape) in (4, 5) and shape[-3] == channels and 0 not in shape
        if not fits or shape[-1] % side or shape[-2] % side:
            raise ShapeError(
                f"{name} needs images [batch, {channels}, height, width], or frames [batch, steps, "
                f"{channels}, height, width], with sides divisible by {side}, got {shape}. Resize "
                "or pad them, or configure num_channels."
            )
        given = shape[1] if len(shape) == 5 else None
        steps = (given or self.config.steps) if steps is None else steps
        if steps < 1:
            raise RangeError(f"{name} needs steps >= 1, got {steps}. Leave it out for the usual.")
        if given is not None and steps != given:
            raise ShapeError(
                f"{name} needs a frame for each of {steps} steps, got {given} frames. Leave steps "
                "out."
            )
        if getattr(self.config, "levels", 0):
            check_levels(name, self.config.levels, given is not None, steps, self.training)
        images = images.to(self.head.weight.dtype)
        if given is None:
            return images.permute(0, 2, 3, 1)[None], steps
        return images.permute(1, 0, 3, 4, 2), steps

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_levels(owner: str, levels: int, frames: bool, steps: int, training: bool) -> None:
    """Raise unless integer neurons read images, in 1 step, or when not trained in D steps."""
    if frames or steps not in (1, levels):
        raise RangeError(
            f"{owner} needs images, and 1 or {levels} steps, got {steps}. One step is the run on "
            f"integers, {levels} are the same run on spikes."
        )
    if training and steps > 1:
        raise RangeError(
            f"{owner} needs 1 step in training, got {steps}. Its spikes have no gradient; in eval "
            "mode they are the same run."
        )


def check_labels(owner: str, labels: Tensor, logits: Tensor) -> None:
    """Raise unless there is one of the classes for each row of ``logits``."""
    check_whole(owner, "labels", labels)
    if labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"{owner} needs one label for each of {len(logits)} images, got {tuple(labels.shape)}. "
            "Give class numbers."
        )
    classes = logits.shape[1]
    if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise RangeError(
            f"{owner} needs labels from 0 to {classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}. Configure num_labels, or renumber them."
        )
