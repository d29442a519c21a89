"""The page's own components: gr.HTML with a fixed template, brought to life by the scripts in `static/`."""

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from look import font_faces

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("player.js", "roll.js", "melody.js", "sheet.js", "hum.js", "edit.js", "stage.js", "dock.js")


def page_head() -> str:
    """Write what the page's head needs: the scripts and the font, all inline, so that nothing is fetched elsewhere."""
    instruments = json.dumps(json.loads((STATIC / "instruments.json").read_text(encoding="utf-8")))
    samples = (STATIC / "instruments/samples.json").read_text(encoding="utf-8")
    folder = json.dumps(f"gradio_api/file={STATIC.as_posix()}/")
    scripts = [f"window.MelodySpace = {{ instruments: {instruments}, samples: {samples}, files: {folder} }};"]
    scripts += [(STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS]
    print_style = (STATIC / "print.css").read_text(encoding="utf-8")  # gradio leaves such rules out of its style sheet
    return f"<style>{font_faces()}{print_style}</style><script>{''.join(scripts)}</script>"


class _Component(gr.HTML):
    """A component whose value is JSON and whose template never changes, so that gradio leaves its elements alone."""

    def __init__(self, value: Any, template: str, script: str, **kwargs: Any):
        super().__init__(
            value=value, html_template=template, js_on_load=script, apply_default_css=False, padding=False, **kwargs
        )

    def postprocess(self, value: Any) -> Any:
        """Send the value as it is."""
        return value

    def api_info(self) -> dict[str, Any]:
        """Describe the value."""
        return {"type": "object"}


class MelodyList(_Component):
    """Cards of melodies; value `{"melodies": [...]}`, with `pick` (from 1), `isBare` (for listening only) and a `note`.

    Args:
        value: What it shows first.
        name: What undo calls it.
        empty: What it says while it is empty.
    """

    def __init__(self, value: Any = None, *, name: str = "", empty: str = "", **kwargs: Any):
        template = (
            f'<div class="mv-list" data-name="{escape(name)}" data-empty="{escape(empty)}" aria-live="polite"></div>'
        )
        super().__init__(value, template, "MelodySpace.mountList(element, props, watch)", **kwargs)


class MelodySlot(_Component):
    """The melody that a tab works on; value a melody, with the `chosen` bars where they can be chosen, or None.

    Args:
        value: What it holds first.
        name: What other tabs send to.
        label: What it is called on the page.
        picks_bars: Whether bars can be chosen.
        is_small: Whether it has little room.
    """

    def __init__(
        self,
        value: Any = None,
        *,
        name: str = "",
        label: str = "",
        picks_bars: bool = False,
        is_small: bool = False,
        **kwargs: Any,
    ):
        options = json.dumps({"name": name, "label": label, "picksBars": picks_bars, "isSmall": is_small})
        super().__init__(
            value,
            '<div class="mv-slot"></div>',
            f"MelodySpace.mountSlot(element, props, watch, trigger, {options})",
            **kwargs,
        )


class BlendPad(_Component):
    """A map between melodies; value `{"melodies": [...], "side": columns}`."""

    def __init__(self, value: Any = None, **kwargs: Any):
        template = (STATIC / "pad.html").read_text(encoding="utf-8")
        super().__init__(value, template, "MelodySpace.mountPad(element, props, watch)", **kwargs)


class Dock(_Component):
    """The player's controls, undo and history, at the foot of the page.

    Args:
        files: Functions of the server that the page calls: `midi`, `wav`, `sheet`, `harmonize` and `put_back`.
    """

    def __init__(self, files: list[Callable] | None = None, **kwargs: Any):
        super().__init__(
            None,
            '<div class="mv-dock" role="region" aria-label="Player"></div>',
            "MelodySpace.mountDock(element, server)",
            server_functions=files,
            **kwargs,
        )


class Header(_Component):
    """The page's head: what this is, in a line, and the light or dark of it."""

    def __init__(self, **kwargs: Any):
        template = (STATIC / "header.html").read_text(encoding="utf-8")
        super().__init__(None, template, "MelodySpace.mountHeader(element)", **kwargs)
