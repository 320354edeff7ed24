"""Distillation: a small network learns what a teacher says and what its layers hold.

(1)  loss = weight mean over i (P a_i - h_i)^2 + tau^2 KL(p(teacher) || p(student))

p is the softmax of logits over tau. a_i are the hidden states of the student, h_i those of the
teacher's layers in equal distances, the embedding first and the last layer last, and P is a layer,
or one for each state, that is trained along and thrown away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from isospike.errors import RangeError, ShapeError


@dataclass(frozen=True)
class Distilled:
    """The two parts of (1), each a number with a gradient.

    Attributes:
        hidden: Mean squared error of the hidden states; not weighted.
        logits: Divergence of the answers.
        loss: Their sum, (1).

    >>> import torch
    >>> Distilled(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)).loss.item()
    3.0
    """

    hidden: Tensor
    logits: Tensor
    loss: Tensor


def distil(
    student: tuple[Tensor, Sequence[Tensor]],
    teacher: tuple[Tensor, Sequence[Tensor]],
    project: nn.Module,
    *,
    mask: Tensor,
    weight: float = 1.0,
    temperature: float = 1.0,
) -> Distilled:
    """The loss of a student that learns from a teacher, equation (1).

    Args:
        student: Logits ``[batch, classes]`` and hidden states ``[batch, tokens, channels]``, of the
            embedding and of each layer, such as ``logits`` and ``hidden_states`` of a
            :class:`~isospike.models.SpikingBert`.
        teacher: The same of the teacher; its layers are a multiple of the student's.
        project: P, from the student's channels to the teacher's; a ``ModuleList`` of one for each
            hidden state, such as that of :func:`~isospike.train.spiking_student`.
        mask: Which tokens are no padding, ``[batch, tokens]``; others are not compared.
        weight: Of the hidden states.
        temperature: tau, above 0; larger ones compare the teacher's smaller scores too.

    Returns:
        The loss and its parts.

    Raises:
        RangeError: The temperature is not above 0, the weight is below 0, or the teacher's layers
            are no multiple of the student's.
        ShapeError: The logits or the hidden states differ in shape.

    Gradient: of the student and of P; the teacher is taken as constant.

    >>> import torch
    >>> states = [torch.zeros(2, 3, 4), torch.ones(2, 3, 4)]
    >>> same = (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), states)
    >>> distil(same, same, nn.Identity(), mask=torch.ones(2, 3)).loss
    tensor(0.)

    Reference: Bal, Sengupta (2024), SpikingBERT; Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu
    (2020), TinyBERT: distilling BERT for natural language understanding.
    """
    if not temperature > 0 or not weight >= 0:
        raise RangeError(
            f"distil needs a temperature above 0 and a weight of at least 0, got {temperature} and "
            f"{weight}. Use 1 and 1."
        )
    (logits, states), (answers, targets) = student, teacher
    layers, others = len(states) - 1, len(targets) - 1
    if layers < 1 or others < layers or others % layers:
        raise RangeError(
            f"distil needs a teacher with a multiple of the student's {layers} layers, got "
            f"{others}. Give the hidden states of the embedding and of each layer."
        )
    if logits.shape != answers.shape:
        raise ShapeError(
            f"distil needs the same classes of both, got logits {tuple(logits.shape)} and "
            f"{tuple(answers.shape)}. Configure num_labels."
        )
    each = list(project) if isinstance(project, nn.ModuleList) else [project] * len(states)
    if len(each) != len(states):
        raise RangeError(
            f"distil needs project for each of {len(states)} hidden states, got {len(each)}. Give "
            "one layer for all, or one for each."
        )
    hidden = logits.new_zeros(())
    for ours, theirs, layer in zip(states, targets[:: others // layers], each, strict=True):
        seen = layer(ours)
        if seen.shape != theirs.shape or mask.shape != theirs.shape[:2]:
            raise ShapeError(
                f"distil needs project to give the teacher's {tuple(theirs.shape)} and a mask of "
                f"its tokens, got {tuple(seen.shape)} and {tuple(mask.shape)}. Use nn.Linear(the "
                "student's channels, the teacher's)."
            )
        kept = mask != 0
        hidden = hidden + F.mse_loss(seen[kept], theirs.detach()[kept]) / len(states)
    divergence = F.kl_div(
        (logits / temperature).log_softmax(-1),
        (answers.detach() / temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    divergence = divergence * temperature**2
    return Distilled(hidden, divergence, weight * hidden + divergence)
