"""Random numbers of samples: a generator each, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.rng import SampleGenerators, sample_seeds, seed_batches, standard_noise, uniform_noise


def test_the_rows_of_a_sample_have_their_own_generator():
    """A sample's rows are those that its seed gives alone, in the order of the draws."""
    like = torch.zeros(6, 2, dtype=torch.float64)

    def draw(*seeds):
        generators, rows = SampleGenerators(seeds), 2 * len(seeds)
        normal = standard_noise((rows, 5), like, generators)
        return torch.cat([normal, uniform_noise(like[:rows], generators)], dim=1)

    together, alone = draw(7, 8, 9), [draw(seed) for seed in (7, 8, 9)]
    assert together.dtype == torch.float64
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(together[0], together[1])


def test_rows_that_samples_cannot_share_are_refused():
    """Noise of another shape than the batch's would mix the samples."""
    with pytest.raises(AssertionError, match="3 rows for 2 samples"):
        standard_noise((3, 2), torch.zeros(1), SampleGenerators([0, 1]))


def test_draws_that_bypass_the_module_differ_between_batches():
    """The shared generator of a batch is seeded by its samples."""
    first, second = (torch.rand(3, generator=SampleGenerators(seeds)) for seeds in ([1, 2], [3, 4]))
    assert not torch.equal(first, second)


def test_seeds_of_samples_do_not_depend_on_the_calls():
    """Five seeds at once are two and then three; without a generator they follow the global one."""
    once, twice = (torch.Generator().manual_seed(3) for _ in range(2))
    assert sample_seeds(5, once) == sample_seeds(2, twice) + sample_seeds(3, twice)
    torch.manual_seed(0)
    first = sample_seeds(2)
    torch.manual_seed(0)
    assert first == sample_seeds(2) != sample_seeds(2)


@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_batches_of_seeds_give_the_same_samples(at_once):
    """Five samples have the same noise however many are drawn at once, and no batch is larger than that."""
    like = torch.zeros(9, 3)

    def draw(at_once):
        batches = seed_batches(5, at_once, torch.Generator().manual_seed(4))
        return [standard_noise((len(seeds.samples), 3), like, seeds) for seeds in batches]

    batches = draw(at_once)
    assert {len(rows) for rows in batches[:-1]} <= {at_once}
    assert len(batches[-1]) <= at_once
    assert torch.equal(torch.cat(batches), torch.cat(draw(5)))
