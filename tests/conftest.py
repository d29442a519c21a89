"""Keep what the libraries cache out of the user's own caches, and the tests off the network."""

import os
import tempfile

# Before any of them is imported: they read these once. The folder goes when the process ends.
CACHE = tempfile.TemporaryDirectory(prefix="melody-vae-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402 - after the environment is set
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# No test depends on how busy the machine is.
settings.register_profile("melody_vae", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("melody_vae")


@pytest.fixture(autouse=True)
def threads():
    """Give torch its threads back: commands under test set their number, and sums depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def without_histograms():
    """Leave the pictures of data sets' cards empty: to draw them takes most of a build's time, and test_card does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset_script.card.write_histograms", lambda path, *_, **__: path.write_bytes(b""))
        yield
