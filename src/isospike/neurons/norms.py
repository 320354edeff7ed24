"""A batch normalisation before neurons, folded into their gain and bias."""

from torch import Tensor, nn

from isospike.errors import UnsupportedError
from isospike.neurons.spiking import NeuronParams

__all__ = ["fold_norm", "scale_and_shift"]


def fold_norm(params: NeuronParams, norm: nn.Module, axes: int = 0) -> NeuronParams:
    """Fold the batch normalisation before neurons into their gain and bias.

    ``gain' = gain a`` and ``bias' = bias + gain b``, where the normalisation is ``a x + b`` per
    channel, so that a layer reads its input once. The rounding differs from that of two steps.

    Args:
        params: The neurons behind the normalisation.
        norm: A ``BatchNorm`` with running statistics.
        axes: Axes behind the channels: 0 for ``[steps, batch, ..., channels]``, 2 for images.

    Returns:
        Parameters of neurons that read what the normalisation read.

    Raises:
        UnsupportedError: ``norm`` is something else, or keeps no statistics.

    Gradient: none, for inference.

    >>> fold_norm(NeuronParams(), nn.BatchNorm1d(2, eps=0.0)).gain
    tensor([1., 1.])
    """
    a, b = scale_and_shift(norm)
    a, b = (n.view(-1, *[1] * axes) for n in (a, b))
    return params._replace(gain=a * params.gain, bias=b * params.gain + params.bias)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``a`` and ``b`` of a batch normalisation in inference, ``a x + b`` per channel.

    Args:
        norm: A ``BatchNorm`` with running statistics.

    Returns:
        ``a`` and ``b``, one value a channel.

    Raises:
        UnsupportedError: ``norm`` is not a batch normalisation, or keeps no statistics.

    >>> a, b = scale_and_shift(nn.BatchNorm1d(2, eps=0.0).eval())
    >>> a.tolist(), b.tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or mean is None or var is None:
        raise UnsupportedError(
            f"fold_norm needs a batch normalisation with running statistics, got {norm}. "
            "Fold it into the layer before, or run it on its own."
        )
    a = (var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        a = a * norm.weight.detach().double()
    b = -mean.double() * a
    if norm.bias is not None:
        b = b + norm.bias.detach().double()
    return a.to(mean.dtype), b.to(mean.dtype)
