"""Models of configurations that the tests of fitting share."""

import pytest

from ideoflow.fitting import Model

from .configs import AUTOENCODER, TEXT, TRANSFORMER


@pytest.fixture(scope="session")
def full() -> Model:
    """The published model's configuration."""
    return Model.full()


@pytest.fixture(scope="session")
def small() -> Model:
    """A small configuration in float32."""
    return Model.of_configs(TEXT, TRANSFORMER, TRANSFORMER, AUTOENCODER, "float32")
