"""Pix2Pix: the gradients of its two players."""

from __future__ import annotations

import torch
from error_law import SHAPE, draw_people

from dualflow.baselines.pix2pix import L1_WEIGHT, Pix2Pix
from dualflow.flows.objective import Batch
from dualflow.tracking.metric_names import loss_term, metric_name


def test_each_player_descends_its_loss():
    """The loss's gradient is that of the discriminator's loss for one player, and of L1 and adversary for the other."""
    torch.manual_seed(0)
    objective = Pix2Pix(SHAPE, 1, width=8).objective()
    for parameter in objective.model.network.get_submodule("output_block").parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    people = draw_people(2, torch.Generator().manual_seed(0))
    objective(Batch(**people))["loss"].backward()
    parameters = dict(objective.named_parameters())
    joint = {name: value.grad.clone() for name, value in parameters.items()}

    model, judge = objective.model, objective.discriminator
    image = model(people["source"], people["side"])
    _, inputs = model.start_and_inputs(people["source"], people["side"])

    def verdict(shown: torch.Tensor) -> torch.Tensor:
        return judge(torch.cat([inputs, torch.nn.functional.pad(model.haar(shown)[0], model.padding)], dim=1))[-1]

    losses = {
        "model": (image - people["target"]).abs().mean() + (verdict(image) - 1).square().mean() / L1_WEIGHT,
        "discriminator": ((verdict(people["target"]) - 1).square().mean() + verdict(image.detach()).square().mean())
        / (2 * L1_WEIGHT),
    }
    for player, loss in losses.items():
        names = [name for name in parameters if name.startswith(player)]
        gradients = torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            assert torch.allclose(joint[name], gradient, atol=1e-6, rtol=1e-3), name


def test_it_learns_and_its_discriminator_stays_out_of_the_model():
    """The error of two people falls, validation selects by it, and only the generator is saved."""
    torch.manual_seed(0)
    model = Pix2Pix(SHAPE, 1, width=8)
    objective, people = model.objective(), draw_people(2, torch.Generator().manual_seed(0))
    optimiser, errors = torch.optim.Adam(objective.parameters(), 5e-3), []
    for _ in range(30):
        optimiser.zero_grad()
        terms = objective(Batch(**people))
        terms["loss"].backward()
        optimiser.step()
        errors.append(float(terms["l1"]))
    assert errors[-1] < 0.8 * errors[0]
    # The loss of the discriminator has no unit, unlike the flow's term `discriminator`.
    assert metric_name("discriminator_loss", "SUVR", loss_term(terms)) == "train/discriminator_loss"
    assert set(terms) == {"loss", "l1", "adversarial", "discriminator_loss"}
    assert objective.selection_score({"loss": 1.0, "l1": 2.0}) == 2.0
    assert not any("discriminator" in name for name in model.state_dict())
