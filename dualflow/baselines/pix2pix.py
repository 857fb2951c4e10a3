"""Pix2Pix: a U-Net with an adversary that judges patches (Isola et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dualflow.baselines.correction import BANDS
from dualflow.baselines.unet import UNet
from dualflow.flows.objective import Batch, Objective, masked_l1

L1_WEIGHT = 100.0
"""Weight of the mean absolute error relative to the adversary's (Isola et al. 2017)."""
LAYERS, KERNEL = 1, 3
"""Layers of the discriminator between the first one, which is strided, and the last one; size of their kernels."""
GROUPS = 4


class Pix2Pix(UNet):
    """The `unet` as the generator of a conditional adversarial network; a point estimate, without noise.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, even; doubled at each of the two coarser scales.
    """

    def objective(self) -> Objective:
        """Return the error inside the mask with the losses of both players."""
        return AdversarialLoss(self)


class AdversarialLoss(Objective):
    """Losses of generator G and discriminator D, in one sum (least squares: Mao et al. 2017).

        L1_WEIGHT |G(y) - x| + (D'(y, G(y)) - 1)^2 + [(D(y, x) - 1)^2 + D(y, G'(y))^2] / 2

    A prime marks a player whose gradient is stopped, so one step of one optimiser moves each player by the gradient of
    its own loss. The sum is divided by L1_WEIGHT, which the optimiser's normalisation does not notice. The
    discriminator sees the Haar bands of source and target, and its patches have 22 voxels along each axis. Only
    the generator is part of the model.

    Args:
        model: the generator.
    """

    def __init__(self, model: Pix2Pix) -> None:
        super().__init__()
        from monai.losses import PatchAdversarialLoss
        from monai.networks.nets import PatchDiscriminator

        self.model = model
        self.discriminator: nn.Module = PatchDiscriminator(
            spatial_dims=3,
            channels=model.width,
            in_channels=model.input_channels + BANDS,
            num_layers_d=LAYERS,
            kernel_size=KERNEL,
            norm=("group", {"num_groups": GROUPS}),
        )
        self.adversarial = PatchAdversarialLoss(criterion="least_squares", reduction="mean", no_activation_leastsq=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, `l1`, and the losses of both players, `adversarial` and `discriminator_loss`."""
        target, mask, given = batch.target, batch.mask, (batch.source, batch.side, batch.mean)
        image = self.model(*given)
        error = masked_l1(image, target, mask)
        inside = torch.ones_like(target) if mask is None else mask.to(target.dtype)
        _, inputs = self.model.start_and_inputs(*given)
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        fake, real = image * inside, target * inside
        adversarial = self.adversarial(
            functional_call(self.discriminator, frozen, (self._judged(inputs, fake),))[-1].float(),
            target_is_real=True,
            for_discriminator=False,
        )
        judged = [
            self.adversarial(
                self.discriminator(self._judged(inputs, shown))[-1].float(), target_is_real=true, for_discriminator=True
            )
            for shown, true in ((real, True), (fake.detach(), False))
        ]
        discriminator = 0.5 * torch.stack(judged).sum()
        loss = error + (adversarial + discriminator) / L1_WEIGHT
        return {
            "loss": loss,
            "l1": error.detach(),
            "adversarial": adversarial.detach(),
            "discriminator_loss": discriminator.detach(),
        }

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the generated target `[N, 1, D, H, W]`."""
        return self.model.point_estimate(source, side)

    def selection_score(self, terms: Mapping[str, float]) -> float:
        """Return the mean absolute error: the players' losses do not measure how good the generator is."""
        return terms["l1"]

    def _judged(self, inputs: Tensor, image: Tensor) -> Tensor:
        """Return what the discriminator sees: the generator's inputs with the bands of an image."""
        return torch.cat([inputs, nn.functional.pad(self.model.haar(image)[0], self.model.padding)], dim=1)
