"""A real Label Studio server for a test session; it is installed once, in the cache."""

import pytest

from connectors.label_studio import server as label_studio_server


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory):
    """ServerInfo of a server with an empty database."""
    folder = tmp_path_factory.mktemp("label-studio")
    server = label_studio_server.up(data_dir=folder)
    yield server
    label_studio_server.down(data_dir=folder)
