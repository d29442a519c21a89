"""The page: tabs, controls, and what happens when they are used."""

import functools
import inspect
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from about import about_text
from actions import (
    ATTRIBUTE_NAMES,
    GRID_SIDE,
    MAX_FILE_BYTES,
    MODES,
    PATH_POINTS,
    VOICES,
    Actions,
    new_seed,
    tempo_class,
)
from checks import ANY, MAX_AMOUNT, MAX_COUNT, MAX_SEED, TEMPOS
from components import BlendPad, Dock, Header, MelodyList, MelodySlot
from gradio.blocks import BlocksConfig
from gradio.events import api
from links import melodies_of_link
from melody import CHOICES, SHARP_NAMES, Melody, RefusedError, cut_bars
from ranking import OPENING_SEEDS

TITLE = "Melody Space"
FIRST_TUNE, FIRST_BLEND = CHOICES["first_tune"], CHOICES["first_blend"]
TONIC_CHOICES = [("Any key", ANY), *((tonic.replace("#", "♯"), tonic) for tonic in SHARP_NAMES)]
PEOPLE_PER_WORKER = 16  # whose requests a worker is at, or will be next: `engine.py` says in which order


def friendly(function: Callable) -> Callable:
    """Show a refusal as one line; it is no fault of the program, so no traceback."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except RefusedError as refusal:
            # A toast is HTML, and a refusal names what a stranger wrote.
            raise gr.Error(escape(str(refusal)), duration=8, print_exception=False) from refusal

    return wrapped


def page_function(action: Callable[..., dict]) -> Callable:
    """Make a function of the server that the page calls with an action's arguments; a refusal comes back as text."""

    def answer(arguments: list) -> dict:
        try:
            inspect.signature(action).bind(*arguments)
        except TypeError as error:  # a stranger's arguments, more or fewer than there are
            return {"error": f"{action.__name__}: {error}"}
        try:
            return action(*arguments)
        except RefusedError as refusal:
            return {"error": str(refusal)}

    answer.__name__ = action.__name__
    return answer


class PageConfig(BlocksConfig):
    """The page's blocks, of which each visit gets a copy. Gradio would describe all of them anew each time."""

    def __init__(self, root_block: gr.Blocks):
        super().__init__(root_block)
        self.described: dict[int, dict[str, Any]] = {}

    def __copy__(self) -> BlocksConfig:
        visit = super().__copy__()
        visit.config_for_block = self._describe
        return visit

    def _describe(self, number: int, rendered: list[int], block: Any, renderable: Any = None) -> dict[str, Any]:
        """Describe a block of a visit, as `config_for_block` does."""
        if renderable or block is not self.blocks.get(number):  # the visit has changed it
            return self.config_for_block(number, rendered, block, renderable)
        if number not in self.described:
            self.described[number] = self.config_for_block(number, rendered, block)
        described = self.described[number]
        return {**described, "props": {**described["props"]}}  # a visit writes values into its own


class Page(gr.Blocks):
    """Gradio's blocks, which refuse too few arguments at the API in a line."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.default_config = PageConfig(self)

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Count the arguments of a request."""
        if len(inputs) < len(block_fn.inputs):
            needs = f"{block_fn.api_name or 'this action'} takes {len(block_fn.inputs)} arguments, not {len(inputs)}"
            raise gr.Error(f"{needs}; see the API's description", print_exception=False)


class Interface:
    """Builds the page around the actions.

    Args:
        actions: What the Space can do.
        workers: Processes with the model; they are given many times as many requests at once.
    """

    def __init__(self, actions: Actions, workers: int):
        self.actions = actions
        self.workers = workers
        self.without_model = {"concurrency_id": "files", "concurrency_limit": 2}
        self.with_model = {"concurrency_id": "model", "concurrency_limit": PEOPLE_PER_WORKER * workers}

    @property
    def threads(self) -> int:
        """Threads that the server needs, so that nobody waits for one."""
        return (PEOPLE_PER_WORKER + 2) * self.workers + 8

    def build(self) -> gr.Blocks:
        """Lay out the page."""
        actions = self.actions
        with Page(title=TITLE, analytics_enabled=False, delete_cache=(300, 300), fill_width=True) as demo:
            self._endpoints()  # before the page's own events, which would take their names
            Header(elem_classes="mv-top")
            with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
                with self._tab("Make", "make"):
                    self._make_tab(demo)
                with self._tab("Change", "change"):
                    self._change_tab()
                with self._tab("Blend", "blend"):
                    self._blend_tab()
                with self._tab("Continue & Fill", "rework"):
                    self._rework_tab()
                with self._tab("Listen", "listen"):
                    self._listen_tab()
                with self._tab("About", "about"):
                    gr.Markdown(about_text(actions), elem_classes="mv-about")
            at_once = (actions.midi, actions.wav, actions.sheet, actions.harmonize, actions.put_back)
            Dock([page_function(action) for action in at_once])
        demo.queue(default_concurrency_limit=self.workers, max_size=200)
        return demo

    def _tab(self, label: str, name: str) -> gr.Tab:
        return gr.Tab(label, id=name, elem_id=f"tab-{name}")

    def _endpoints(self) -> None:
        """Name every action as an endpoint of the API, and so as an MCP tool."""
        actions = self.actions
        model_actions = (
            actions.make,
            actions.change,
            actions.blend,
            actions.extend,
            actions.fill,
            actions.listening_pair,
        )
        for action in model_actions:
            api(friendly(action), api_name=action.__name__, **self.with_model)
        for action in (actions.read_midi, actions.wav, actions.put_back):
            api(friendly(action), api_name=action.__name__, **self.without_model)
        at_once = (actions.tune, actions.harmonize, actions.midi, actions.sheet, actions.about, actions.listening_vote)
        for action in at_once:
            api(friendly(action), api_name=action.__name__, concurrency_limit=self.workers)

    def _on(self, event: Callable, function: Callable, inputs: Any, outputs: Any, **kwargs: Any) -> Any:
        """Connect a control to what the model does; the endpoints of the API are others."""
        options = {"api_visibility": "private", **self.with_model, **kwargs}
        return event(friendly(function), inputs, outputs, **options)

    def _at_once(self, event: Callable, function: Callable, inputs: Any, outputs: Any, **kwargs: Any) -> Any:
        """Connect a control to what needs no model, so no queue."""
        options = {"queue": False, "show_progress": "hidden", "api_visibility": "private", **kwargs}
        return event(friendly(function), inputs, outputs, **options)

    # Make

    def _make_tab(self, demo: gr.Blocks) -> None:
        actions = self.actions
        first = {
            "melodies": actions.opening(3),
            "note": f"To begin with: of the melodies of {OPENING_SEEDS} seeds, the three that measure most like the "
            "tunes that come with this page. What you make is shown as it comes.",
        }
        gr.Markdown("New melodies, out of nothing but a seed. Ask for a key, a meter or a voice if you like.")
        with gr.Row(elem_classes="mv-split"):
            with gr.Column(elem_classes="mv-actions"):
                button = gr.Button("Make melodies", variant="primary", size="lg")
            with gr.Column(scale=1, min_width=260, elem_classes="mv-panel"):
                settings, seed, is_new = self._make_settings(first["melodies"][0]["origin"]["seed"])
            with gr.Column(scale=2, min_width=320, elem_classes="mv-right"):
                made = MelodyList(first, name="Make", elem_classes="mv-stage", min_height=320)

        def make(is_new: bool, seed: int | None, *values: Any) -> tuple[int, dict]:
            seed = new_seed() if is_new or seed is None else int(seed)
            return seed, {"melodies": actions.make(**self._asked(*values), seed=seed)}

        self._on(button.click, make, [is_new, seed, *settings], [seed, made], trigger_mode="once")

        def open_page(request: gr.Request) -> Any:
            return self._open_page(dict(request.query_params))

        self._on(demo.load, open_page, None, [*settings, seed, is_new, made], show_progress="hidden")

    def _make_settings(self, first_seed: int) -> tuple[list[Any], gr.Number, gr.Checkbox]:
        """Put up what can be asked of new melodies, in the order of `_asked`; returns that, the seed and its box."""
        with gr.Row():
            count = gr.Slider(1, MAX_COUNT, 3, step=1, label="How many")
            bars = gr.Slider(1, self.actions.most_bars, min(8, self.actions.most_bars), step=1, label="Bars")
        with gr.Accordion("Ask for a key, a meter, a voice", open=True, elem_classes="mv-wishes"):
            with gr.Row():
                tonic = gr.Dropdown(TONIC_CHOICES, value=ANY, label="Key", min_width=90)
                mode = gr.Dropdown(list(MODES), value="major", label="Scale", min_width=110)
            with gr.Row():
                meters = [("Any meter", ANY), *((meter, meter) for meter in self.actions.facts["meters"])]
                meter = gr.Dropdown(meters, value=ANY, label="Meter", min_width=90)
                tempos = [("Any tempo", ANY), *((tempo.capitalize(), tempo) for tempo in list(TEMPOS)[1:])]
                tempo = gr.Dropdown(tempos, value=ANY, label="Tempo", min_width=110)
            with gr.Row():
                genres = [("Any genre", ANY)]
                genres += [(genre.replace("|", " / ").replace("_", " & "), genre) for genre in self.actions.genres]
                genre = gr.Dropdown(genres, value=ANY, label="Genre", visible=len(genres) > 1, min_width=110)
                voices = [("Any range", ANY), *((voice.capitalize(), voice) for voice in list(VOICES)[1:])]
                voice = gr.Dropdown(voices, value=ANY, label="Singable by", min_width=110)
            temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="Temperature", info="Daring: 1 is as it learned")
            with gr.Row():
                seed = gr.Number(first_seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=90)
                is_new = gr.Checkbox(True, label="New seed each time", min_width=120, container=False)
        with gr.Accordion("More or less of something", open=False, elem_classes="mv-wishes"):
            attributes = [
                gr.Slider(-MAX_AMOUNT, MAX_AMOUNT, 0, step=0.25, label=ATTRIBUTE_NAMES.get(name, name))
                for name in self.actions.facts["attributes"]
            ]
        return [count, bars, tonic, mode, meter, genre, tempo, voice, temperature, *attributes], seed, is_new

    def _asked(
        self,
        count: int,
        bars: int,
        tonic: str,
        mode: str,
        meter: str,
        genre: str,
        tempo: str,
        voice: str,
        temperature: float,
        *attributes: float,
    ) -> dict[str, Any]:
        """Read the controls of the tab as arguments of `make`."""
        scale = ANY if tonic == ANY else f"{tonic} {mode}"
        return {
            "count": count,
            "bars": bars,
            "scale": scale,
            "time_signature": meter,
            "genre": genre,
            "tempo": tempo,
            "voice": voice,
            "temperature": temperature,
            "attributes": dict(zip(self.actions.facts["attributes"], attributes, strict=True)),
        }

    def _open_page(self, query: dict[str, str]) -> Any:
        """Set the controls as a link says, and make its melodies again; without a link, leave the page as it is."""
        try:
            melodies = melodies_of_link(self.actions, query)
        except RefusedError as error:
            gr.Warning(f"The link cannot be followed: {escape(str(error))}")
            return gr.skip()
        if melodies is None:
            return gr.skip()
        settings = melodies["melodies"][0]["origin"]
        tonic, _, mode = settings["scale"].partition(" ")
        return [
            settings["count"],
            settings["bars"],
            tonic,
            mode or "major",
            settings["time_signature"],
            settings["genre"],
            settings["tempo"] if isinstance(settings["tempo"], str) else tempo_class(settings["tempo"]),
            settings["voice"],
            settings["temperature"],
            *(settings.get(name, 0) for name in self.actions.facts["attributes"]),
            settings["seed"],
            False,
            melodies,
        ]

    # Change

    def _change_tab(self) -> None:
        actions = self.actions
        gr.Markdown(
            "Start from a tune. The model turns it into a point; the sliders move the point, and you hear what becomes "
            "of the tune. At rest you hear how the model remembers it."
        )
        first = cut_bars(actions.tunes[FIRST_TUNE], 0, actions.max_bars)
        with gr.Row(elem_classes="mv-split"):
            with gr.Column(elem_classes="mv-actions"), gr.Row():
                button = gr.Button("Change it", variant="primary", min_width=100)
                reset = gr.Button("At rest", variant="secondary", min_width=100)
            with gr.Column(scale=1, min_width=260, elem_classes="mv-panel"):
                sliders = [
                    gr.Slider(-MAX_AMOUNT, MAX_AMOUNT, 0, step=0.25, label=ATTRIBUTE_NAMES.get(name, name))
                    for name in actions.facts["attributes"]
                ]
                similarity = gr.Slider(0, 1, 1, step=0.05, label="Likeness", info="Below 1: variations")
            with gr.Column(scale=2, min_width=320, elem_classes="mv-right"):
                slot = MelodySlot(first, name="change", label="Your tune", elem_classes="mv-stage", min_height=190)
                self._sources(slot, FIRST_TUNE)
                changed = MelodyList(
                    name="Change", empty="Move a slider, or press Change it.", elem_classes="mv-stage", min_height=190
                )

        def change(melody: Melody | None, similarity: float, *amounts: float) -> dict:
            asked = dict(zip(actions.facts["attributes"], amounts, strict=True))
            count = 1 if similarity == 1 else 3
            return {"melodies": actions.change(melody, asked, similarity, count, new_seed())}

        inputs = [slot, similarity, *sliders]
        events = [self._on(button.click, change, inputs, changed, trigger_mode="once")]
        for slider in (similarity, *sliders):
            events.append(self._on(slider.release, change, inputs, changed, trigger_mode="always_last"))
        at_rest = [1, *[0] * len(sliders), None]  # and what was made before is gone while the new one is made
        cleared = self._at_once(reset.click, lambda: at_rest, None, [similarity, *sliders, changed], cancels=events)
        self._on(cleared.then, lambda melody: change(melody, 1, *[0] * len(sliders)), slot, changed)

    def _forget_tune(self, slot: MelodySlot, tunes: gr.Dropdown) -> None:
        """Name no tune of the list any more when a melody was sent to a slot, or brought back by undo."""
        slot.input(None, None, tunes, js="() => null", queue=False, api_visibility="private")

    def _sources(self, slot: MelodySlot, title: str | None = None) -> None:
        """Offer ways to a melody: a tune that comes with the Space, or a track of a MIDI file."""
        actions = self.actions
        files = gr.State(None)
        with gr.Row(elem_classes="mv-sources"):
            tunes = gr.Dropdown(list(actions.tunes), value=title, label="A tune", min_width=160, scale=2)
            upload = gr.UploadButton("Your MIDI file", file_types=[".mid", ".midi"], size="md", min_width=140, scale=1)
        with gr.Row(visible=False) as choice:
            track = gr.Dropdown([], label="Track", info="The likeliest tune is chosen", min_width=160)
            first_bar = gr.Slider(1, 2, 1, step=1, label="From bar", min_width=160)

        def take_tune(title: str | None) -> Any:
            return cut_bars(actions.tune(title), 0, actions.max_bars) if title else None

        def take_file(path: str) -> list[Any]:
            file = Path(path)
            try:
                content = file.read_bytes() if file.stat().st_size <= MAX_FILE_BYTES else b"MThd" * MAX_FILE_BYTES
            finally:
                file.unlink(missing_ok=True)  # it is the visitor's own, and read only once
            read = actions.read_midi_bytes(content)
            names = [
                (f"{index + 1}. {each['name']} ({len(each['melody']['pitch'])} notes)", index)
                for index, each in enumerate(read["tracks"])
            ]
            melody = read["tracks"][read["best"]]["melody"]
            starts = max(1, melody["bars"] - actions.max_bars + 1)
            if not read["is_certain"]:
                gr.Warning("No track is surely the tune: listen, and choose another if it is not this one")
            return [
                read["tracks"],
                gr.Row(visible=True),
                gr.Dropdown(choices=names, value=read["best"]),
                gr.Slider(1, max(starts, 2), 1, visible=starts > 1),
                window(read["tracks"][read["best"]], 1),
                None,
            ]

        def window(track: dict, first_bar: float) -> Melody:
            cut = cut_bars(track["melody"], int(first_bar) - 1, actions.max_bars)
            taken = f"bars {int(first_bar)} to {int(first_bar) + cut['bars'] - 1} of these are taken"
            return {**cut, "chosen": [], "found": f"{track['found']}; {taken}"}

        def take_track(tracks: list[dict], index: int) -> list[Any]:
            melody = tracks[index]["melody"]
            starts = max(1, melody["bars"] - actions.max_bars + 1)
            return [gr.Slider(1, max(starts, 2), 1, visible=starts > 1), window(tracks[index], 1), None]

        def take_bar(tracks: list[dict], index: int, first_bar: float) -> list[Any]:
            return [window(tracks[index], first_bar), None]

        self._at_once(tunes.input, take_tune, tunes, slot)
        taken = [files, choice, track, first_bar, slot, tunes]
        self._on(upload.upload, take_file, upload, taken, **self.without_model)
        self._at_once(track.input, take_track, [files, track], [first_bar, slot, tunes])
        self._at_once(first_bar.release, take_bar, [files, track, first_bar], [slot, tunes])
        self._forget_tune(slot, tunes)

    # Blend

    def _blend_tab(self) -> None:
        actions = self.actions
        gr.Markdown(
            "A map with your melodies at its corners. Touch it anywhere, or drag: each place is a melody of its own, "
            "and it plays. This is what a latent space is."
        )
        bars = min(8, actions.max_bars)
        ends = [cut_bars(actions.tunes[title], 0, bars) for title in FIRST_BLEND]
        first = {"melodies": actions.blend(ends), "side": GRID_SIDE}
        with gr.Row(elem_classes="mv-split mv-blend"):
            with gr.Column(scale=3, min_width=320, elem_classes="mv-right"):
                pad = BlendPad(first, elem_classes="mv-stage", min_height=420)
            with gr.Column(elem_classes="mv-actions"):
                button = gr.Button("Blend", variant="primary")
                ways = gr.Radio(
                    [("Two: a path from A to B", 2), ("Four: a map", 4)], value=4, label="Blend", show_label=False
                )
            with gr.Column(scale=2, min_width=280, elem_classes="mv-panel"):
                slots, tunes = [], []
                for letter, end, title in zip("ABCD", ends, FIRST_BLEND, strict=True):
                    with gr.Group(elem_classes=f"mv-end mv-end-{letter.lower()}"):
                        slots.append(
                            MelodySlot(
                                end,
                                name=f"blend-{letter.lower()}",
                                label=letter,
                                is_small=True,
                                elem_classes="mv-stage mv-small",
                            )
                        )
                        tunes.append(
                            gr.Dropdown(
                                list(actions.tunes),
                                value=title,
                                label=f"Tune at {letter}",
                                show_label=False,
                                container=False,
                            )
                        )

        def blend(ways: int, *melodies: Melody | None) -> dict:
            blends = actions.blend(list(melodies[:ways]))
            return {"melodies": blends, "side": PATH_POINTS if ways == 2 else GRID_SIDE}

        def take(title: str) -> Melody:
            return cut_bars(actions.tune(title), 0, bars)

        for slot, tune in zip(slots, tunes, strict=True):
            self._at_once(tune.input, take, tune, slot)
            self._forget_tune(slot, tune)
        self._on(button.click, blend, [ways, *slots], pad, trigger_mode="once")
        self._on(ways.input, blend, [ways, *slots], pad, trigger_mode="always_last")

    # Continue and fill

    def _rework_tab(self) -> None:
        actions = self.actions
        gr.Markdown(
            "Keep what you like. Choose bars under the roll to have them written anew, or let the melody go on after "
            "its end; everything else stays note for note."
        )
        first = cut_bars(actions.tunes[FIRST_BLEND[0]], 0, min(8, actions.max_bars))
        slot = MelodySlot(
            {**first, "chosen": [3, 4] if first["bars"] >= 4 else [1]},
            name="rework",
            label="Your melody",
            picks_bars=True,
            elem_classes="mv-stage",
            min_height=230,
        )
        self._sources(slot, FIRST_BLEND[0])
        with gr.Row(elem_classes="mv-split"):
            with gr.Column(elem_classes="mv-actions"), gr.Row():
                fill = gr.Button("Fill bars", variant="primary", min_width=100)
                extend = gr.Button("Continue", variant="primary", min_width=100)
            with gr.Column(scale=1, min_width=260, elem_classes="mv-panel"):
                count = gr.Slider(1, MAX_COUNT, 2, step=1, label="Versions")
                temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="Temperature", info="Daring")
                longest = actions.max_bars // 2
                more = gr.Slider(1, max(longest, 2), min(4, longest), step=1, label="Bars to add")
            with gr.Column(scale=2, min_width=320, elem_classes="mv-right"):
                reworked = MelodyList(
                    name="Continue & Fill", empty="New versions appear here.", elem_classes="mv-stage", min_height=240
                )

        def run_fill(melody: Melody | None, count: int, temperature: float) -> dict:
            bars = (melody or {}).get("chosen") or []
            return {"melodies": actions.fill(melody, bars, count, new_seed(), temperature)}

        def run_extend(melody: Melody | None, more: int, count: int, temperature: float) -> dict:
            return {"melodies": actions.extend(melody, more, count, new_seed(), temperature)}

        self._on(fill.click, run_fill, [slot, count, temperature], reworked, trigger_mode="once")
        self._on(extend.click, run_extend, [slot, more, count, temperature], reworked, trigger_mode="once")

    # Listen

    def _listen_tab(self) -> None:
        actions = self.actions
        gr.Markdown(
            "One of two melodies was written by a person, long ago; the other by the model just now, in the same meter "
            "and tempo. Which is which? Votes are kept without anything about you: they measure the model."
        )
        pair = gr.State(None)
        score = gr.State((0, 0))
        with gr.Column(elem_classes="mv-listen"):
            begin = gr.Button("Play me a pair", variant="primary", size="lg")
            with gr.Row():
                vote_a = gr.Button("A person wrote A", interactive=False, min_width=120)
                vote_b = gr.Button("A person wrote B", interactive=False, min_width=120)
            verdict = gr.Markdown("", elem_classes="mv-verdict", min_height=56)
            duo = MelodyList(name="Listen", empty="A pair appears here.", elem_classes="mv-stage", min_height=340)

        def next_pair() -> list[Any]:
            taken = actions.listening_pair()
            return [
                taken["pair"],
                {"melodies": [taken["a"], taken["b"]], "isBare": True},
                gr.Button(interactive=True),
                gr.Button(interactive=True),
                "Listen to both, then vote.",
            ]

        def vote(choice: str, pair: str | None, score: tuple[int, int]) -> list[Any]:
            judged = actions.listening_vote(pair or "", choice)
            right, votes = score[0] + judged["is_right"], score[1] + 1
            person = judged["person_is"].upper()
            said = "Right" if judged["is_right"] else "Not this time"
            text = f"**{said}.** {person} is *{judged['tune']}*, by a person. You have {right} of {votes} right."
            return [None, (right, votes), gr.Button(interactive=False), gr.Button(interactive=False), text]

        outputs = [pair, duo, vote_a, vote_b, verdict]
        self._on(begin.click, next_pair, None, outputs, trigger_mode="once")
        for button, choice in ((vote_a, "a"), (vote_b, "b")):
            self._at_once(
                button.click, functools.partial(vote, choice), [pair, score], [pair, score, vote_a, vote_b, verdict]
            )
