"""Set every range and bias of an opened-up model in one pass over the calibration inputs."""

import torch
from torch import Tensor

from isospike.errors import RangeError
from isospike.hf.batches import Batch, doubled, first_output, token_mask
from isospike.porting.ported import Ported


def calibrate(ported: Ported, batch: Batch) -> tuple[Tensor, Tensor]:
    """Calibrate a freshly opened-up model whose sites have their codes; it then runs on spikes.

    The batch goes through once, doubled: float stream and spiking stream side by side, so each site
    sees the spiking activations it will get and the float output it should give. Nothing is
    trained.

    Returns:
        The two first outputs, float and spiking, on the calibration inputs themselves.
    """
    with torch.no_grad(), ported.run.calibrating(token_mask(batch)):
        out = first_output(ported.model(**doubled(batch)))
    for site in ported.sites:
        if not bool(site.scale.isfinite().all() and site.offset.isfinite().all()):
            raise RangeError(
                f"port needs finite activations, got NaN or infinity at {site.name}. Check the "
                "model's weights and inputs."
            )
    float_out, spiking_out = out.chunk(2)
    return float_out, spiking_out
