"""PersonScale: the size of a person's errors as a log-linear function of side information and tissue fractions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dualflow.flows.person_features import tissue_count, tissue_fractions

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)
"""Candidate strengths of the ridge, for standardised features; the largest leaves no effect."""


def person_features(source: Tensor, side: Tensor) -> Tensor:
    """Return a person's features `[N, S + 6C + 1]`: side values, tissue fractions and the log of the brain's volume.

    Args:
        source: `[N, C, D, H, W]`.
        side: `[N, S]`, NaN where unknown, and then NaN in the features.
    """
    return torch.cat([side.to(source.dtype), tissue_fractions(source)], dim=1)


def feature_count(side_features: int, source_channels: int) -> int:
    """Return the number of person features."""
    return side_features + tissue_count(source_channels)


class PersonScale(nn.Module):
    """Scale `s(x) = exp((b + w . x) / 2)` of a person's errors, 1 on average.

    The fit to mean squared errors `q ~ s^2 chi^2 / n` is a gamma regression with log link and a ridge penalty
    (McCullagh and Nelder 1989, chapter 8); cross-fitting chooses the ridge. An unknown feature counts as its training
    mean. `b + w . x` is clamped to its range over the training people, so that the scale does not extrapolate.

    Args:
        features: number of person features.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor
    limits: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("weight", torch.zeros(features))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("limits", torch.zeros(2))

    def fit(self, features: Tensor, energy: Tensor, folds: Sequence[int]) -> Tensor:
        """Fit the scale to the mean squared error of each person; return cross-fitted scales `[N]`.

        Args:
            features: `[N, P]`, NaN where unknown.
            energy: `[N]`.
            folds: cross-fitting fold of each person.
        """
        from sklearn.linear_model import GammaRegressor
        from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict

        self.centre.copy_(torch.nan_to_num(features.nanmean(dim=0)))
        known = torch.nan_to_num(features - self.centre).double().numpy()
        spread = known.std(axis=0)
        spread[spread == 0] = 1.0
        target = (energy / energy.mean().clamp_min(1e-12)).clamp_min(1e-6).double().numpy()  # a gamma needs q > 0
        split = PredefinedSplit(folds)
        search = GridSearchCV(
            GammaRegressor(solver="newton-cholesky", max_iter=1000),
            {"alpha": RIDGES},
            cv=split,
            scoring="neg_mean_gamma_deviance",
        )
        fitted = search.fit(known / spread, target).best_estimator_
        self.weight.copy_(torch.from_numpy(fitted.coef_ / spread))
        self.bias.fill_(float(fitted.intercept_))
        predictor = torch.from_numpy(known @ (fitted.coef_ / spread) + fitted.intercept_)
        self.limits.copy_(torch.stack([predictor.min(), predictor.max()]))
        squares = cross_val_predict(fitted, known / spread, target, cv=split)
        return torch.from_numpy(squares).sqrt().to(energy)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scale `[N]` of people with features `[N, P]`."""
        predictor = self.bias + torch.nan_to_num(features - self.centre) @ self.weight
        return (0.5 * predictor.clamp(self.limits[0], self.limits[1])).exp()
