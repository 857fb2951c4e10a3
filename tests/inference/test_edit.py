"""Edits of a measured target: what changes is what was asked for."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import batch, build, expected_target, parametrize_flows, trained
from torch import Tensor, nn

from dualflow.errors import ConfigError, ShapeError
from dualflow.flows.latent_statistics import SETS
from dualflow.inference.edit import Subject, decode_under, edit, encode_standardised, transfer

each_named = parametrize_flows(["dualflow", "dual_glow", "srflow"])
each_set = pytest.mark.parametrize("sets", SETS)


def subjects() -> tuple[Subject, Subject]:
    """Return four subjects that the flows have not seen, and four others, with known side values."""
    target, source, side = batch(8, seed=7)
    side = side.nan_to_num(0)
    return Subject(target[:4], source[:4], side[:4]), Subject(target[4:], source[4:], side[4:])


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return the correlation of two volumes over voxels, for each subject."""
    pairs = zip(left.flatten(1), right.flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


@each_named
def test_an_edit_without_changes_returns_the_target(name):
    """Encoding and decoding under the same condition is the round trip; with a mask, inside of it."""
    flow, (subject, _) = trained(name), subjects()
    torch.testing.assert_close(edit(flow, subject), subject.target, rtol=0, atol=1e-9)
    inside = torch.zeros_like(subject.target, dtype=torch.bool)
    inside[:, :, 2:6] = True
    masked = edit(flow, subject._replace(mask=inside, target=torch.where(inside, subject.target, 0.0)))
    torch.testing.assert_close(masked[inside], subject.target[inside], rtol=0, atol=1e-9)


@each_named
def test_side_values_change_the_expectation_and_keep_the_person(name):
    """A larger first side value raises the target, as in training; the standardised latents stay, so it undoes."""
    flow, (subject, _) = trained(name), subjects()
    side = subject.side + torch.tensor([1.0, 0, 0])
    older = edit(flow, subject, side=side)
    assert ((older - subject.target).mean((1, 2, 3, 4)) > 0.003).all()
    edited = Subject(older, subject.source, side)
    for before, after in zip(encode_standardised(flow, subject), encode_standardised(flow, edited), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-8)
    torch.testing.assert_close(edit(flow, edited, side=subject.side), subject.target, rtol=0, atol=1e-8)


class TrueMean(nn.Module):
    """The mean of `batch`; training leaves closed-form means as they are, so those of the zoo are flat."""

    def forward(self, source: Tensor, side: Tensor) -> Tensor:
        return expected_target(source, side)


@each_named
def test_transfer_keeps_the_recipients_structure(name):
    """The result correlates with the recipient's expectation more than with the subject's, and is likely under it."""
    flow, (subject, recipient) = trained(name), subjects()
    if flow.spec.prediction == "mean":
        flow.mean_model = TrueMean()
    moved = transfer(flow, subject, recipient)
    expected, other = (flow.sample(person.source, person.side, temperature=0.0)[0] for person in (recipient, subject))
    assert correlation(moved, expected).mean() > correlation(moved, other).mean() + 0.2
    with torch.no_grad():
        likelihood = flow.log_prob(moved, recipient.source, recipient.side)
        untouched = flow.log_prob(subject.target, recipient.source, recipient.side)
    assert likelihood.mean() > untouched.mean() + 10
    assert not torch.allclose(moved, recipient.target, atol=0.05)


@each_named
@each_set
def test_retouched_images_return_to_the_flows_law(name, sets):
    """Noise on an image has latents that the flow does not draw; normalised, they are as likely as those of samples."""
    flow, (subject, _) = trained(name), subjects()
    retouched = subject._replace(
        target=subject.target + torch.randn(subject.target.shape, generator=torch.Generator().manual_seed(0))
    )
    edited = edit(flow, retouched, sets=sets)
    samples = flow.sample(subject.source, subject.side, generator=torch.Generator().manual_seed(1))[0]
    with torch.no_grad():
        before, after, drawn = (
            flow.log_prob(image, subject.source, subject.side).mean() for image in (retouched.target, edited, samples)
        )
    assert before < drawn - 1000
    assert after > drawn - 30
    repeated = edit(flow, retouched, sets=sets)
    assert torch.equal(edited, repeated)
    another_draw = edit(flow, retouched, sets=sets, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(edited, another_draw)


@each_named
@each_set
def test_a_reference_gives_its_moments(name, sets):
    """The latents of the edited image have, set by set, the moments of the reference's latents."""
    flow, (subject, reference) = trained(name), subjects()
    edited = transfer(flow, subject, reference, sets=sets, reference=reference)
    latents = encode_standardised(flow, reference._replace(target=edited))
    for e, wanted in zip(latents, encode_standardised(flow, reference), strict=True):
        torch.testing.assert_close(e.mean(SETS[sets]), wanted.mean(SETS[sets]), rtol=0, atol=1e-7)
        torch.testing.assert_close(e.std(SETS[sets]), wanted.std(SETS[sets]), rtol=0, atol=1e-7)
    restyled = edit(flow, subject, sets=sets, reference=reference)
    assert not torch.allclose(restyled, subject.target, atol=1e-3)


@pytest.mark.xdist_group("dualflow")
def test_temperature_zero_leaves_the_expectation():
    """Moments of a draw at temperature 0 leave nothing of the person."""
    flow, (subject, _) = trained("dualflow"), subjects()
    expected = flow.sample(subject.source, subject.side, temperature=0.0)[0]
    edited = edit(flow, subject, sets="spatial", temperature=0.0)
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-6)


def test_errors_name_the_remedy():
    """Unknown sets, a reference without sets, and batches that do not match are refused."""
    flow, (subject, other) = build("dualflow").eval(), subjects()
    with pytest.raises(ConfigError, match="unknown sets 'voxel'; choose from: global, local, spatial"):
        edit(flow, subject, sets="voxel")
    with pytest.raises(ConfigError, match="a reference was given without sets; choose sets from: global"):
        edit(flow, subject, reference=other)
    with pytest.raises(ShapeError, match="1 references for 4 subjects"):
        edit(flow, subject, sets="global", reference=Subject(*(value[:1] for value in other[:3])))
    with pytest.raises(ShapeError, match="target holds 3 volumes, expected 4"):
        encode_standardised(flow, subject._replace(target=subject.target[:3]))
    latents = encode_standardised(flow, subject)
    with pytest.raises(ShapeError, match="latent of level 1 has size"):
        decode_under(flow, latents, other.source[:3], other.side[:3])
