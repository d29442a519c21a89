"""Keep what the libraries cache out of the user's own caches, and the tests off the network."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before any of them is imported: they read these once. The folder goes when the process ends.
CACHE = tempfile.TemporaryDirectory(prefix="melody-vae-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402 - after the environment is set
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# No test depends on how busy the machine is.
settings.register_profile("melody_vae", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("melody_vae")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests: else one core computes the last of them while the others rest."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test of bytes after its argument: an archive carries the time of its making, and workers compare names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def threads():
    """Give torch its threads back: commands under test set their number, and sums depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def logged():
    """Return the messages of transformers' own logger, however the environment has it propagate."""
    messages, handler = [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    from transformers.utils.logging import get_logger

    logger = get_logger("transformers")
    level = logger.level
    logger.setLevel(logging.WARNING)  # whatever tests before have set
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_deprecation(request):
    """Fail a test of compatibility in which transformers' own logger says that something is deprecated."""
    if "compatibility" not in request.keywords:
        yield
        return
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()  # else each is said once in a process
    messages = request.getfixturevalue("logged")
    yield
    assert not [message for message in messages if "deprecat" in message]


@pytest.fixture(scope="module")
def without_histograms():
    """Leave the pictures of data sets' cards empty: to draw them takes most of a build's time, and test_card does."""
    with pytest.MonkeyPatch.context() as patch:
        for write in ("write_histograms", "write_curves"):
            patch.setattr(f"dataset_script.card.{write}", lambda path, *_, **__: path.write_bytes(b""))
        yield


@pytest.fixture(scope="module")
def small_pictures():
    """Draw piano rolls in few pixels: half of the time went into them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rendering.piano_roll.DPI", 50)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make folders once for all workers: `shared(name, make)` calls `make(folder)` if no worker has done it yet."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # its own folder lies in the session's

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                threads = torch.get_num_threads()
                make(folder)
                torch.set_num_threads(threads)  # see above
                done.touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def dataset(shared) -> Path:
    """A data set to train on."""
    from tests.builders.training import write_dataset

    return shared("dataset", write_dataset)


@pytest.fixture(scope="session")
def trained(shared, dataset) -> Path:
    """A melody VAE trained for twelve steps, with a checkpoint and a log."""
    from tests.builders.training import arguments, run

    return shared("trained", lambda folder: run(arguments(dataset, folder)))


@pytest.fixture(scope="session")
def trained_with_prior(shared, trained, dataset) -> Path:
    """The same with a prior of one layer, for which three windows make a value one that can be asked for."""
    from tests.builders.training import fit_prior

    return shared("trained_with_prior", lambda folder: fit_prior(trained, dataset, folder))
