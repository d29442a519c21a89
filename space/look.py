"""How the page looks: gradio's theme with the page's own colours, and the font, inlined so that nothing is fetched."""

import base64
from pathlib import Path

from gradio.themes import Base, sizes

FONTS = Path(__file__).parent / "static/fonts"
WEIGHTS = (400, 600, 800)

COLOURS = {  # of gradio's own controls: those of `static/space.css`
    "body_background_fill": "--mv-page",
    "body_text_color": "--mv-ink",
    "body_text_color_subdued": "--mv-muted",
    "background_fill_primary": "--mv-card",
    "background_fill_secondary": "--mv-page",
    "block_background_fill": "--mv-card",
    "block_border_color": "--mv-line",
    "block_label_text_color": "--mv-muted",
    "block_label_background_fill": "--mv-card",
    "block_title_text_color": "--mv-ink",
    "block_info_text_color": "--mv-muted",
    "panel_background_fill": "--mv-card",
    "border_color_primary": "--mv-line",
    "border_color_accent": "--mv-accent",
    "color_accent": "--mv-accent",
    "color_accent_soft": "--mv-soft",
    "input_background_fill": "--mv-roll",
    "input_border_color": "--mv-line",
    "input_border_color_focus": "--mv-accent",
    "input_placeholder_color": "--mv-muted",
    "slider_color": "--mv-accent",
    "checkbox_background_color": "--mv-roll",
    "checkbox_background_color_selected": "--mv-accent",
    "checkbox_border_color": "--mv-muted",
    "checkbox_border_color_selected": "--mv-accent",
    "checkbox_label_background_fill": "--mv-roll",
    "checkbox_label_background_fill_selected": "--mv-soft",
    "checkbox_label_text_color": "--mv-ink",
    "checkbox_label_text_color_selected": "--mv-ink",
    "checkbox_label_border_color": "--mv-line",
    "button_primary_background_fill": "--mv-accent",
    "button_primary_background_fill_hover": "--mv-accent-hover",
    "button_primary_text_color": "--mv-on-accent",
    "button_primary_text_color_hover": "--mv-on-accent",
    "button_primary_border_color": "--mv-accent",
    "button_secondary_background_fill": "--mv-soft",
    "button_secondary_background_fill_hover": "--mv-line",
    "button_secondary_text_color": "--mv-ink",
    "button_secondary_text_color_hover": "--mv-ink",
    "button_secondary_border_color": "--mv-line",
    "link_text_color": "--mv-accent",
    "link_text_color_hover": "--mv-accent",
    "link_text_color_active": "--mv-accent",
    "link_text_color_visited": "--mv-accent",
    "table_border_color": "--mv-line",
    "table_odd_background_fill": "--mv-card",
    "table_even_background_fill": "--mv-page",
    "code_background_fill": "--mv-roll",
}


def font_faces() -> str:
    """Write the CSS that brings the font."""
    faces = []
    for weight in WEIGHTS:
        data = base64.b64encode((FONTS / f"manrope-{weight}.woff2").read_bytes()).decode()
        faces.append(
            f"@font-face{{font-family:Manrope;font-weight:{weight};font-display:swap;"
            f"src:url(data:font/woff2;base64,{data}) format('woff2')}}"
        )
    return "".join(faces)


def theme() -> Base:
    """Make gradio's own controls follow the colours of `static/space.css`."""
    look = Base(
        font=["Manrope", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        radius_size=sizes.radius_md,
        spacing_size=sizes.spacing_md,
    )
    values = {name: f"var({colour})" for name, colour in COLOURS.items()}
    dark = {f"{name}_dark": value for name, value in values.items() if hasattr(look, f"{name}_dark")}
    return look.set(
        **values,
        **dark,
        block_border_width="0px",
        block_shadow="none",
        block_padding="10px 12px",
        block_label_text_weight="600",
        block_title_text_weight="600",
        button_large_text_weight="800",
        button_medium_text_weight="600",
        input_border_width="1px",
        layout_gap="14px",
    )
