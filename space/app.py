"""The Space: make, change, blend, continue and fill melodies, and listen.

`python space/app.py` serves the page. The model is `MODEL_ID`, an id on the Hub or a folder; by default the release
beside this folder, or else the one on the Hub. Nothing else is needed, and nothing is fetched but the model.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RELEASE = HERE.parent / "release" / "melody-vae-16bar"
HUB_ID = "melody-vae/melody-vae-16bar"
SESSIONS = 500  # visits that are remembered: gradio keeps 0.1 MB of each


def find_model() -> str:
    """Say which model to use."""
    return os.environ.get("MODEL_ID") or (str(RELEASE) if RELEASE.is_dir() else HUB_ID)


def find_text_link(*folders: Path) -> Path | None:
    """Find a Python file that holds nothing but a path: so git writes links on Windows by default."""
    files = (file for folder in folders for file in sorted(folder.glob("*.py")))
    return next((file for file in files if file.read_text(encoding="utf-8").startswith("../")), None)


def main() -> int:
    """Serve the page; workers import this file again, so everything else is imported here."""
    if link := find_text_link(HERE, Path(find_model())):
        print(
            f"{link}: a link that git wrote as text; run `git config core.symlinks true` and "
            f"`git checkout -- {link.parent}` (Windows: as administrator or in developer mode)",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Gradio keeps statistics of its own, anew after each event over all of so many.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "500")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "100")
    from engine import Engine
    from melody import RefusedError

    workers = os.environ.get("WORKERS")
    engine = Engine(find_model(), int(workers) if workers else None)
    # While the workers load the model, this process loads gradio.
    from importlib.util import find_spec

    from actions import MAX_FILE_BYTES, Actions
    from components import STATIC, page_head
    from gradio import set_static_paths
    from interface import Interface
    from look import theme

    try:
        engine.wait()
        actions = Actions(engine, Path(os.environ.get("VOTES_FOLDER", HERE / "votes")))
    except RefusedError as refusal:
        print(refusal, file=sys.stderr)
        engine.close()
        return 2
    set_static_paths([STATIC / "vendor", STATIC / "instruments"])  # which the page fetches when they are needed
    interface = Interface(actions, engine.workers)
    demo = interface.build()
    try:
        demo.launch(
            theme=theme(),
            css_paths=STATIC / "space.css",
            head=page_head(),
            footer_links=["api"],
            max_file_size=MAX_FILE_BYTES,
            max_threads=interface.threads,
            state_session_capacity=SESSIONS,
            mcp_server=find_spec("mcp") is not None,
            ssr_mode=False,
            show_error=False,
            _frontend=False,  # gradio would ask for the page, and end where it does not come within three seconds
        )
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
