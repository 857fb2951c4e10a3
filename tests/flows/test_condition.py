"""Conditioning of a flow: no leak from the target, causal steps, use of source and side values, and input checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from flow_zoo import (
    FLOWS,
    SHAPE,
    batch,
    build,
    build_spec,
    each_flow,
    flows_with,
    parametrize_flows,
    small,
    terms,
    trained,
)
from torch import Tensor

from dualflow.errors import ConfigError, InputError, ShapeError
from dualflow.flows.actnorm import ConditionalActNorm
from dualflow.flows.attention import PatchEmbedding
from dualflow.flows.bijection import Bijection
from dualflow.flows.level import Level, StepMaps
from dualflow.flows.mixing import ConditionalMatrix
from dualflow.flows.model import Condition, DualFlow
from dualflow.flows.presets import PRESETS


def tensors_of(condition: Condition) -> Iterator[Tensor]:
    """Yield every tensor of a condition."""
    yield condition.mean
    yield from condition.features
    for level in condition.maps:
        for step in level:
            yield from step.values()
    if condition.source_log_prob is not None:
        yield condition.source_log_prob


def conditions_of(flow: DualFlow, monkeypatch: pytest.MonkeyPatch) -> list[Condition]:
    """Record the conditions that the flow computes from now on."""
    conditions: list[Condition] = []

    def spy(*inputs: Tensor, **options: bool) -> Condition:
        conditions.append(DualFlow.condition(flow, *inputs, **options))
        return conditions[-1]

    monkeypatch.setattr(flow, "condition", spy)
    return conditions


@each_flow
def test_the_condition_is_independent_of_the_target(name, monkeypatch):
    """In training, no tensor of the condition depends on the target, in value or in gradient."""
    flow, (target, source, side) = trained(name).train(), batch()
    conditions = conditions_of(flow, monkeypatch)
    target.requires_grad_()
    for image in (target, 2 - target):
        torch.manual_seed(0)
        terms(flow, image, source, side)
    first, second = (list(tensors_of(condition)) for condition in conditions)
    for value, other in zip(first, second, strict=True):
        assert value.grad_fn is None or torch.autograd.grad(value.sum(), target, allow_unused=True)[0] is None
        torch.testing.assert_close(value, other, rtol=0, atol=0)


@parametrize_flows([*flows_with(source="glow"), *flows_with(source="glow_pyramid")])
def test_source_density_depends_on_the_source_only(name):
    """The density of the source is bit for bit the same for every target, and follows a change of the source."""
    flow, (target, source, side) = trained(name), batch()
    density = flow.condition(source, side).source_log_prob
    torch.testing.assert_close(flow.source_log_prob(source), density)
    other = flow.condition(source.flip(0), side).source_log_prob
    assert density is not None
    assert other is not None
    torch.testing.assert_close(density, other.flip(0))
    if flow.spec.source_nll_weight:
        values = [terms(flow, image, source, side)["source_nll"] for image in (target, target.flip(0), 3 * target)]
        assert torch.equal(values[0], values[1])
        assert torch.equal(values[0], values[2])
        torch.testing.assert_close(values[0], -density.mean() / source[0].numel())


def test_an_encoder_has_no_density():
    """The error names the option that gives one."""
    with pytest.raises(ConfigError, match="choose source: glow"):
        build(flows_with(source="encoder")[0]).source_log_prob(batch()[1])


def test_a_second_image_is_not_taken_for_detail():
    """An image reaches below 0, where no standard deviation does: two images for a flow of one are refused."""
    flow, (target, source, side) = build("dualflow").eval(), batch()
    with pytest.raises(InputError, match="2 channels, whose detail is negative; expected 1 images"):
        flow.log_prob(target, torch.cat([source, source - 0.5], dim=1), side)


def test_source_features_of_another_level_are_refused():
    """Latents and source features of a level have one grid."""
    flow, (target, source, side) = build("dual_glow").eval(), batch()
    latents, condition = flow.encode(target, source, side)[0], flow.condition(source, side)
    context = flow.prior_context(0, None, condition)
    flow.prior(0).standardise(latents[0], context)
    with pytest.raises(ShapeError, match="pass both for the same level"):
        flow.prior(0).standardise(latents[1], context)


def perturbed(maps: list[list[StepMaps]], level: int, step: int) -> list[list[StepMaps]]:
    """Return a copy of the maps, with noise added to those of one step."""
    copies = [list(steps) for steps in maps]
    copies[level][step] = {name: value + 0.3 * torch.randn_like(value) for name, value in copies[level][step].items()}
    return copies


@parametrize_flows(flows_with(context="step"))
def test_steps_are_causal(name):
    """A change of the maps of step k leaves earlier steps equal bit for bit, and changes step k and all later ones."""
    flow, (target, source, side) = trained(name), batch(2)
    condition, steps = flow.condition(source, side), flow.spec.steps
    order = [(level, step) for level in range(flow.spec.levels) for step in range(steps[level])]
    with torch.no_grad():
        before = flow.flow.trace(target, condition.maps)
        for position, (level, step) in enumerate(order):
            after = flow.flow.trace(target, perturbed(condition.maps, level, step))
            for other_position, (other_level, k) in enumerate(order):
                original, changed = before.activations[other_level][k], after.activations[other_level][k]
                if other_position < position:
                    assert all(torch.equal(original[piece], changed[piece]) for piece in original)
                # The half that a level's last coupling changes is split off and never reaches coarser levels.
                elif other_level == level or step + 1 < steps[level]:
                    assert not torch.allclose(original["coupling"], changed["coupling"], atol=1e-7)
            for finer in range(level):
                assert torch.equal(before.latents[finer], after.latents[finer])
            assert not torch.allclose(before.latents[level], after.latents[level], atol=1e-7)
            assert (before.log_det != after.log_det).all() or flow.spec.coupling == "additive"


@parametrize_flows(flows_with(source="glow", context="step"))
def test_a_step_reads_the_matching_step_of_the_source_flow(name):
    """The map of a layer starts with the output of the same layer in the source flow."""
    flow, (_, source, side) = trained(name), batch()
    maps = flow.condition(source, side).maps
    activations = flow.source.flow.trace(source, flow.source.no_maps).activations
    for level, steps in enumerate(activations):
        for k, outputs in enumerate(steps):
            assert set(maps[level][k]) >= {"actnorm", "mixing", "coupling"}
            for piece, output in outputs.items():
                torch.testing.assert_close(maps[level][k][piece][:, : output.shape[1]], output)
    torch.testing.assert_close(maps[0][0]["injector"], maps[0][0]["coupling"])


@parametrize_flows(flows_with(source="encoder", context="step"))
def test_encoder_makes_a_map_for_each_step(name):
    """Maps of different steps differ, and each depends on the previous one."""
    flow, (_, source, side) = trained(name), batch()
    maps = flow.condition(source, side).maps
    for level, count in enumerate(flow.spec.steps):
        assert len(maps[level]) == count
        for k in range(1, count):
            assert not torch.allclose(maps[level][k]["coupling"], maps[level][k - 1]["coupling"], atol=1e-3)
    with torch.no_grad():
        flow.source.blocks[0][0][0].weight.add_(0.1)
        changed = flow.condition(source, side).maps
    assert all(not torch.allclose(maps[0][k]["coupling"], changed[0][k]["coupling"]) for k in range(flow.spec.steps[0]))


@each_flow
def test_the_true_source_is_more_likely_than_another(name):
    """On new subjects the density is higher under the true source, and side values change it."""
    flow, (target, source, side) = trained(name), batch(64, seed=7)
    with torch.no_grad():
        matched = flow.log_prob(target, source, side)
        shuffled = flow.log_prob(target, source.roll(1, 0), side)
        assert matched.mean() > shuffled.mean()
        assert (matched > shuffled).double().mean() > 0.5
        assert ((flow.log_prob(target, source.flip(0), side) - matched).abs() > 1e-3).double().mean() > 0.9
        for changed in (side + 1, None):
            difference = (flow.log_prob(target, source, changed) - matched).abs()
            assert (difference > 0).all()
            assert difference.median() > 1e-3


@each_flow
def test_samples_follow_the_source(name):
    """With the same random numbers, another source gives other samples."""
    flow, (_, source, side) = trained(name), batch()

    def samples(source: Tensor) -> Tensor:
        return flow.sample(source, side, n=8, generator=torch.Generator().manual_seed(0))

    assert ((samples(source) - samples(source.roll(1, 0))).abs().amax((0, 2, 3, 4, 5)) > 1e-4).all()


INJECTOR_ONLY = [
    name
    for name in flows_with(injector=True, actnorm="plain", mixing="lu", mean="none", attention="none")
    if FLOWS[name].prior != "relation"
]


def silence_couplings(flow: DualFlow) -> None:
    """Zero the projections of the source that couplings read."""
    with torch.no_grad():
        for level in flow.flow.levels:
            assert isinstance(level, Level)
            for parameter in level.projections.parameters():
                parameter.zero_()


@parametrize_flows(INJECTOR_ONLY)
def test_the_injector_alone_carries_the_source(name):
    """Without source input to the couplings, the true source is still more likely."""
    flow, (target, source, side) = trained(name), batch(64, seed=7)
    silence_couplings(flow)
    with torch.no_grad():
        matched, shuffled = (flow.log_prob(target, image, side) for image in (source, source.roll(1, 0)))
        assert ((matched - shuffled).abs() > 1e-3).all()
        assert matched.mean() > shuffled.mean()
        for module in flow.modules():
            if isinstance(module, Level):
                for step in module.steps:
                    del step.pieces["injector"]
        torch.testing.assert_close(flow.log_prob(target, source, None), flow.log_prob(target, source.roll(1, 0), None))


def test_injector_presets_are_tested():
    """SRFlow and PU-Flow read the source in couplings and injectors only."""
    assert {"srflow", "puflow"} <= set(INJECTOR_ONLY)


def response(piece: Bijection, context: Tensor) -> Tensor:
    """Return the outputs of a linear or affine layer at the unit vectors and at 0, `[N, C, C + 1]`."""
    channels = piece.channels if isinstance(piece, ConditionalMatrix) else len(piece.shift)
    vectors = torch.cat([torch.eye(channels), torch.zeros(channels, 1)], dim=1).to(context.dtype)
    with torch.no_grad():
        return piece(vectors[None, :, :, None, None].expand(len(context), -1, -1, -1, -1), context)[0].flatten(2)


def pooled_pieces(flow: DualFlow) -> Iterator[tuple[Bijection, int, int, str]]:
    """Yield every conditional actnorm and mixing matrix with its level, step and layer name."""
    for index, level in enumerate(flow.flow.levels):
        for k, step in enumerate(level.steps):
            for name, piece in step.pieces.items():
                for module in piece.modules():
                    if isinstance(module, ConditionalActNorm | ConditionalMatrix):
                        yield module, index, k, name


@parametrize_flows(sorted({*flows_with(actnorm="conditional"), *flows_with(mixing="conditional")}))
def test_pooled_networks_learn(name):
    """After training, conditional actnorms and matrices differ between subjects, most by over 1e-3 of their norm."""
    flow, (_, source, side) = trained(name), batch(16, seed=7)
    maps, spreads = flow.condition(source, side).maps, []
    for piece, level, step, key in pooled_pieces(flow):
        matrices = response(piece, maps[level][step][key]).flatten(1)
        differences = torch.cdist(matrices, matrices)
        assert (differences + torch.eye(len(matrices)) > 0).all()
        spreads.append(float(differences.max() / matrices[0].norm()))
    kinds = (flow.spec.actnorm == "conditional") + (flow.spec.mixing == "conditional")
    assert len(spreads) == kinds * sum(flow.spec.steps)
    assert min(spreads) > 1e-4
    assert sorted(spreads)[len(spreads) // 2] > 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_conditional_networks_do_not_grow_with_the_volume(name):
    """Source, flow and priors have the same number of parameters for a volume eight times as large."""
    options = {"low_rank": 0}
    sizes = [build_spec(small(name, **options), shape=tuple(scale * size for size in SHAPE)) for scale in (1, 2)]
    counts = [
        [sum(value.numel() for value in part.parameters()) for part in (flow.source, flow.flow, flow.priors)]
        for flow in sizes
    ]
    assert counts[0] == counts[1]


@parametrize_flows(name for name in FLOWS if FLOWS[name].attention != "none")
def test_attention_reads_the_source(name):
    """The density changes if the tokens of attention lose the source."""
    flow, (target, source, side) = trained(name), batch()
    with torch.no_grad():
        density, embeddings = flow.log_prob(target, source, side), 0
        for tokens in flow.modules():
            if isinstance(tokens, PatchEmbedding) and tokens.context is not None:
                tokens.context.weight.zero_()
                embeddings += 1
        assert ((flow.log_prob(target, source, side) - density).abs() > 1e-5).all()
    assert embeddings >= flow.spec.levels


@each_flow
def test_a_batched_condition_equals_single_ones(name):
    """Repeated for several samples, the condition of a batch equals the conditions of its subjects."""
    flow, (_, source, side) = build(name).eval(), batch()
    batched = list(tensors_of(flow.condition(source, side).repeat(2)._replace(source_log_prob=None)))
    singles = [flow.condition(source[i : i + 1], side[i : i + 1])._replace(source_log_prob=None) for i in range(3)]
    for value, *parts in zip(batched, *map(tensors_of, singles), strict=True):
        torch.testing.assert_close(value, torch.cat([*parts, *parts]))


INVALID_INPUTS = {
    "NaN target": (
        lambda t, s, c: (t.index_fill(4, torch.tensor([0]), torch.nan), s, c),
        "target holds .* NaN or infinite",
    ),
    "infinite source": (lambda t, s, c: (t, s * torch.inf, c), "source holds .* NaN or infinite"),
    "infinite side": (lambda t, s, c: (t, s, torch.full_like(c, torch.inf)), "side information holds infinite"),
    "float32 target": (lambda t, s, c: (t.float(), s, c), "target holds float32, expected float64"),
    "float32 source": (lambda t, s, c: (t, s.float(), c), "source holds float32, expected float64"),
    "empty batch": (lambda t, s, c: (t[:0], s[:0], c[:0]), "source holds 0 volumes, expected at least 1"),
    "fewer targets": (lambda t, s, c: (t[:1], s, c), "target holds 1 volumes, expected 3 as in the source"),
    "fewer side rows": (lambda t, s, c: (t, s, c[:1]), "one row per volume"),
    "a channel too many": (lambda t, s, c: (torch.cat([t, t], 1), s, c), r"target of size \(3, 2, 8, 4, 4\)"),
}


@pytest.mark.parametrize("case", INVALID_INPUTS)
def test_invalid_inputs_are_refused(case):
    """A one-line error names the wrong size, number format or value, the expectation and the remedy."""
    change, message = INVALID_INPUTS[case]
    flow = build("dualflow").eval()
    with pytest.raises(InputError, match=message) as error:
        flow.log_prob(*change(*batch()))
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 5


def test_latents_of_another_size_are_refused():
    """The error names the level, its size and the expected size, or the missing level."""
    flow, (target, source, side) = build("dualflow").eval(), batch()
    latents, _ = flow.encode(target, source, side)
    with pytest.raises(ShapeError, match=f"{len(latents) - 1} latents for {len(latents)} levels"):
        flow.decode(latents[:-1], source, side)
    with pytest.raises(ShapeError, match=r"latent of level 1 has size .* expected"):
        flow.decode([latents[0][:, :1], *latents[1:]], source, side)
    with pytest.raises(InputError, match=r"latent of level 2 holds .* NaN"):
        flow.decode([latents[0], latents[1] * torch.nan, *latents[2:]], source, side)


def test_unknown_side_values_are_no_bad_input():
    """NaN in the side information means unknown."""
    flow, (target, source, side) = build("dualflow").eval(), batch()
    assert flow.log_prob(target, source, torch.full_like(side, torch.nan)).isfinite().all()


def test_a_mean_of_two_channels_is_refused_when_the_flow_is_built():
    """A mean model predicts one channel."""
    with pytest.raises(ConfigError, match="predicts one channel and the target has 2; choose mean: none"):
        DualFlow(small("dualflow"), shape=SHAPE, target_channels=2)
    flow = DualFlow(small("dual_glow"), shape=SHAPE, target_channels=2).double().eval()
    target, source, _ = batch()
    assert flow.log_prob(torch.cat([target, target], 1), source).isfinite().all()
