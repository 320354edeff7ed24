"""Set every range and bias of a fresh port in one pass over the calibration inputs."""

import torch
from torch import Tensor

from isospike.errors import InputError
from isospike.hf.batches import Batch, doubled, first_output, token_mask
from isospike.porting.ported import Ported
from isospike.porting.run import Targets

OUTPUT = ""  # what the whole model gives, among targets


def calibrate(
    ported: Ported, batch: Batch, targets: Targets | None = None
) -> tuple[Tensor, Tensor]:
    """Calibrate a fresh port whose sites have their codes; it then runs on spikes.

    The batch goes through once, doubled: float stream and spiking stream side by side, so each site
    sees the spiking activations it will get and the float output it should give. Nothing is
    trained.

    Args:
        ported: A copy of a discovered model.
        batch: The calibration inputs.
        targets: Keeps the results of the float stream's products for other ports of the same model
            that are calibrated on the same inputs; these need the spiking stream only.

    Returns:
        The two first outputs, float and spiking, on the calibration inputs themselves.

    Raises:
        InputError: NaN or infinity at a site, which is named.
    """
    alone = targets is not None and targets.complete
    inputs = batch if alone else doubled(batch)
    with torch.no_grad(), ported.run.calibrating(token_mask(batch), targets):
        out = first_output(ported.model(**inputs))
    for site in ported.sites:
        if not bool(site.scale.isfinite().all() and site.offset.isfinite().all()):
            raise InputError(
                f"port needs finite activations, got NaN or infinity at {site.name}. Check the "
                "model's weights and inputs."
            )
    if targets is not None and alone:
        return targets.of(OUTPUT), out
    float_out, spiking_out = out.chunk(2)
    if targets is not None:
        targets.keep(OUTPUT, float_out)
        targets.finish()
    return float_out, spiking_out
