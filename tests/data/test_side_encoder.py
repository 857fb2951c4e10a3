"""Encoding of side information."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch

from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import CheckpointError, DataError

TABLE = pd.DataFrame({"age": [60.0, 70.0, np.nan, 80.0], "sex": ["F", "M", "F", None]})


def test_encoding_of_known_and_unknown_values():
    """Numbers are standardised by known training values, text is one-hot, and unknown values are NaN."""
    encoder = SideEncoder.fit(TABLE, ["age", "sex"])
    assert encoder.names == ["age", "sex=F", "sex=M"]
    sd = np.std([60, 70, 80])
    expected = [[-10 / sd, 1, 0], [0, 0, 1], [np.nan, 1, 0], [10 / sd, np.nan, np.nan]]
    np.testing.assert_allclose(encoder.encode(TABLE).numpy(), expected, rtol=1e-6)
    assert encoder.encode(TABLE).dtype == torch.float32


def test_statistics_come_from_the_fit():
    """The encoding of a row does not depend on other rows."""
    encoder = SideEncoder.fit(TABLE, ["age", "sex"])
    torch.testing.assert_close(encoder.encode(TABLE.iloc[[1]]), encoder.encode(TABLE)[[1]])


def test_json_round_trip_is_exact():
    """A loaded encoder is equal, even with a column that is unknown for all scans."""
    table = TABLE.assign(iq=[np.nan] * 4)
    encoder = SideEncoder.fit(table, ["age", "sex", "iq"])
    loaded = SideEncoder.from_dict(json.loads(json.dumps(encoder.to_dict(), allow_nan=False)))
    assert loaded == encoder
    assert encoder.encode(table)[:, 3].isnan().all()
    with pytest.raises(CheckpointError, match="side encoder"):
        SideEncoder.from_dict({"columns": [{"kind": "Polynomial"}]})


def test_new_values_at_conversion(caplog):
    """Unseen levels are unknown and logged, missing columns are unknown, and text in a numeric column is refused."""
    encoder = SideEncoder.fit(TABLE, ["age", "sex"])
    with caplog.at_level(logging.WARNING):
        features = encoder.encode(pd.DataFrame({"sex": ["X"]}))
    assert features.isnan().all()
    assert "X not seen in training" in caplog.text
    with pytest.raises(DataError, match="'age' is 'old'"):
        encoder.encode(pd.DataFrame({"age": ["old"], "sex": ["F"]}))


def test_a_column_without_training_values_is_unknown_for_all():
    """Whether it holds numbers or levels is not known either, so that both are encoded."""
    encoder = SideEncoder.fit(pd.DataFrame({"site": [None, None]}), ["site"])
    assert encoder.encode(pd.DataFrame({"site": ["EXT", "site-1", 2.0]})).isnan().all()


def test_text_stays_text_in_training_rows_that_are_all_numbers():
    """A guess from them alone would refuse the other rows of the same table."""
    table = pd.DataFrame({"site": ["1", "2", "EXT", "EXT", "EXT"]}, dtype=object)
    encoder = SideEncoder.fit(table.iloc[:2], ["site"])
    assert encoder.names == ["site=1", "site=2"]
    assert encoder.encode(table)[2:].isnan().all()


def test_a_constant_column_is_zero():
    """A column that is constant in training becomes 0, so it cannot affect the output."""
    encoder = SideEncoder.fit(pd.DataFrame({"age": [70.0, 70.0]}), ["age"])
    assert encoder.encode(pd.DataFrame({"age": [70.0, 5.0]})).tolist() == [[0.0], [0.0]]


def test_a_column_that_the_index_lacks_is_named():
    """The configuration may have a new column, while the index is of the one before."""
    with pytest.raises(DataError, match="no side column 'weight'"):
        SideEncoder.fit(TABLE, ["age", "weight"])


def test_no_side_columns():
    """Without columns the features have shape [N, 0]."""
    assert SideEncoder.fit(TABLE, []).encode(TABLE).shape == (4, 0)
