"""Keep what the libraries cache out of the user's own caches, and the tests off the network."""

import os
import tempfile

# Before any of them is imported: they read these once. The folder goes when the process ends.
CACHE = tempfile.TemporaryDirectory(prefix="melody-vae-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
