"""Predictions of loaded models: seeds, mask, temperature and uncertainty."""

import numpy as np
import pytest
import torch

from dualflow.baselines import BASELINES
from dualflow.errors import IntensityError
from dualflow.inference.predict import RunningMoments, load_predictor
from dualflow.models.store import save_model
from dualflow.training.memory_footprint import _count_live_bytes


@pytest.fixture(scope="module")
def predict(model_folder, phantoms):
    """Return a function that predicts the first phantom."""
    predictor, item = load_predictor(model_folder), phantoms[0]

    def run(**options):
        options = {"samples": 4, "temperature": 1.0, "seed": 5} | options
        return predictor.predict(item["source"], item["side"], item["mask"], **options)

    return run


def test_samples_depend_on_the_seed(predict):
    """Equal seeds give identical samples; the point estimate does not depend on the seed."""
    first, repeated, reseeded = predict(), predict(), predict(seed=6)
    assert np.array_equal(first.samples, repeated.samples)
    assert not np.array_equal(first.samples, reseeded.samples)
    assert np.array_equal(first.mean, reseeded.mean)
    assert not np.array_equal(first.samples[0], first.samples[1])


def test_the_global_generator_is_neither_used_nor_changed(predict):
    """Samples depend only on the given seed."""
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), predict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert np.array_equal(first.samples, predict().samples)


def test_predictions_are_zero_outside_the_mask(predict, phantoms):
    """Inside, the standard deviation is that of the samples."""
    prediction, inside = predict(), phantoms[0]["mask"][0].numpy()
    for volume in (prediction.mean, prediction.std, *prediction.samples):
        assert volume.dtype == np.float32
        assert volume.shape == inside.shape
        assert not volume[~inside].any()
    assert (prediction.std[inside] > 0).all()
    np.testing.assert_allclose(prediction.std, prediction.samples.std(axis=0, ddof=1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(prediction.sample_mean, prediction.samples.mean(axis=0), rtol=1e-5, atol=1e-7)


def test_only_the_samples_to_keep_are_kept(predict):
    """They are the first ones; mean and standard deviation are those of all samples."""
    everything, two, none = predict(), predict(keep=2), predict(keep=0)
    assert np.array_equal(two.samples, everything.samples[:2])
    assert none.samples.shape == (0, *everything.mean.shape)
    for prediction in (two, none):
        assert np.array_equal(prediction.std, everything.std)
        assert np.array_equal(prediction.sample_mean, everything.sample_mean)
    assert len(predict(keep=9).samples) == 4


def test_memory_does_not_grow_with_the_samples(predict):
    """The tensors of 48 samples take no more memory at a time than those of 16."""

    def peak(samples):
        with _count_live_bytes([]) as live:
            predict(samples=samples, keep=1)
        return live.peak

    assert peak(48) == peak(16)


@pytest.mark.parametrize(
    ("part", "name"), [("point_estimate", "point estimate"), ("stream", "spread"), ("sample", "spread")]
)
def test_a_prediction_that_is_not_finite_is_an_error(model_folder, phantoms, monkeypatch, part, name):
    """One NaN in the estimate, or an infinite voxel in a sample, also in one that is not kept."""
    predictor, item = load_predictor(model_folder), phantoms[0]
    if part == "point_estimate":
        image = torch.zeros(1, 1, *item["source"].shape[1:])
        image[..., 8, 8, 8] = float("nan")
        monkeypatch.setattr(predictor.model, "point_estimate", lambda *_: image)
    else:
        stream = predictor.model.stream
        voxel = float("inf") if part == "stream" else float("nan")

        def broken(*arguments):
            for drawn in stream(*arguments):
                drawn[-1, ..., 8, 8, 8] = voxel
                yield drawn

        monkeypatch.setattr(predictor.model, "stream", broken)
    with pytest.raises(IntensityError, match=f"predicted {name} has 1 NaN or infinite voxels"):
        predictor.predict(item["source"], item["side"], item["mask"], samples=4, temperature=1.0, seed=0, keep=0)


def test_running_moments_are_those_of_all_volumes():
    """They are exact although the mean is large."""
    volumes = 1e4 + torch.randn(7, 3, 4)
    moments = RunningMoments(volumes[0])
    for volume in volumes:
        moments.add(volume)
    torch.testing.assert_close(moments.mean, volumes.double().mean(dim=0))
    torch.testing.assert_close(moments.std(), volumes.double().std(dim=0))


def test_temperature_scales_the_standard_deviation(predict):
    """At temperature 0 all samples are equal."""
    cold, cool, warm = (predict(temperature=value).std.mean() for value in (0.0, 0.5, 1.0))
    assert cold < 1e-6 < cool < warm


def test_a_model_without_a_density_has_the_constant_spread_of_its_card(tmp_path, card, phantoms):
    """The spread is constant in the mask and per region, and there are no samples."""
    model = BASELINES["mean_image"](card.shape, 1)
    model.fit(phantoms)
    save_model(tmp_path, model, card.model_copy(update={"kind": "mean_image", "spec": None}))
    item = phantoms[0]
    prediction = load_predictor(tmp_path).predict(
        item["source"], item["side"], item["mask"], samples=4, temperature=1.0, seed=0
    )
    inside = item["mask"][0].numpy()
    assert prediction.samples is None
    assert set(np.unique(prediction.std)) == {0.0, 0.25}
    assert (prediction.std == 0.25)[inside].all()
    assert prediction.region_std.tolist() == [0.125] * 3
    expected = torch.stack([entry["target"][0] for entry in phantoms.items]).mean(dim=0).numpy()
    np.testing.assert_allclose(prediction.mean[inside], expected[inside], rtol=1e-5)


def test_a_density_in_closed_form_is_predicted_like_a_flow(tmp_path, card, phantoms):
    """Samples depend on the seed, the mean is the point estimate, and the card's constant spread is not used."""
    model = BASELINES["local_linear_mixture"](card.shape, 1, regions=1)
    model.fit(phantoms)
    changes = {"kind": "local_linear_mixture", "spec": None, "options": {"regions": 1}}
    save_model(tmp_path, model, card.model_copy(update=changes))
    predictor, item = load_predictor(tmp_path), phantoms[0]
    options = {"samples": 4, "temperature": 1.0}
    first, second, other = (
        predictor.predict(item["source"], item["side"], item["mask"], seed=seed, **options) for seed in (0, 0, 1)
    )
    inside = item["mask"][0].numpy()
    estimate = model.point_estimate(item["source"][None], item["side"][None])[0, 0].numpy()
    assert first.samples.shape == (4, *card.shape)
    assert np.array_equal(first.samples, second.samples)
    assert not np.array_equal(first.samples, other.samples)
    assert not first.samples[:, ~inside].any()
    assert first.region_std is None
    assert first.sample_seconds > 0
    np.testing.assert_array_equal(first.mean[inside], estimate[inside])
    np.testing.assert_allclose(first.std, first.samples.std(axis=0, ddof=1), rtol=1e-5)


def test_a_card_without_a_spread_gives_no_uncertainty(tmp_path, card, phantoms):
    """The standard deviation is zero, and there is none per region."""
    model = BASELINES["mean_image"](card.shape, 1)
    changes = {"kind": "mean_image", "spec": None, "constant_spread": None}
    save_model(tmp_path, model, card.model_copy(update=changes))
    item = phantoms[0]
    prediction = load_predictor(tmp_path).predict(
        item["source"], item["side"], item["mask"], samples=4, temperature=1.0, seed=0
    )
    assert prediction.std.shape == prediction.mean.shape
    assert not prediction.std.any()
    assert prediction.samples is None
    assert prediction.region_std is None
