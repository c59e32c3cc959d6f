"""What tests of the student share."""

import pytest
from tiny_encoder import save_encoder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a tiny random BERT."""
    return save_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def one_thread():
    """More threads only get into each other's way with tiny models."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
