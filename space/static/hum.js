// Notes by voice: what the microphone hears after a bar of clicks becomes the notes of a roll. All of it stays here.
// Pitches are found by McLeod's method (pitchy), which comes with the page's server when it is first needed.
(() => {
  const Space = window.MelodySpace;
  const FRAME_SECONDS = 0.043; // about so much, in a power of two of samples; four to a step from frame to frame
  const CLEAR = 0.9; // of 1: a frame with less has no pitch
  const [LOWEST_HZ, HIGHEST_HZ] = [60, 1500];
  const QUIET = 0.08; // of the loudest frame: silence
  const DIP = 0.5; // of the loudness on both sides: where a syllable begins
  const NEIGHBOURS = 8; // frames on each side
  const ANOTHER = 0.7; // semitones from a note's pitch: another note
  const SHORTEST_SECONDS = 0.07;
  const CLICK_SECONDS = 0.03;
  const FRAMES_AT_ONCE = 200; // between them the page answers
  const TAPE = `registerProcessor("tape", class extends AudioWorkletProcessor {
    constructor() {
      super();
      this.port.onmessage = () => (this.isOver = true);
    }
    process([[sound]]) {
      if (sound) this.port.postMessage({ at: currentTime, sound: sound.slice() });
      return !this.isOver;
    }
  })`;

  const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
  const loudness = (frame) => Math.sqrt(frame.reduce((sum, value) => sum + value * value, 0) / frame.length);

  let pitchy = null;
  const loadPitchy = () => {
    pitchy ||= import(new URL(`${Space.files}vendor/pitchy.js`, document.baseURI)).catch((error) => {
      pitchy = null;
      throw error;
    });
    return pitchy;
  };

  // The pitch of each frame in semitones of MIDI; NaN where there is none.
  const follow = async (sound, rate, size, hop) => {
    const detector = (await loadPitchy()).PitchDetector.forFloat32Array(size);
    const frames = [];
    for (let at = 0; at + size <= sound.length; at += hop) {
      const frame = sound.subarray(at, at + size);
      frames.push({ loud: loudness(frame.subarray((size - hop) / 2, (size + hop) / 2)), frame });
    }
    const most = (from, to) => frames.slice(Math.max(0, from), to).reduce((high, { loud }) => Math.max(high, loud), 0);
    const quiet = QUIET * Math.max(0.01, most(0));
    const pitches = [];
    for (const [i, { loud, frame }] of frames.entries()) {
      if (i % FRAMES_AT_ONCE === 0) await new Promise((go) => setTimeout(go));
      const around = Math.min(most(i - NEIGHBOURS, i), most(i + 1, i + 1 + NEIGHBOURS));
      const [hertz, clarity] = loud < quiet || loud < DIP * around ? [0, 0] : detector.findPitch(frame, rate);
      pitches.push(clarity > CLEAR && hertz > LOWEST_HZ && hertz < HIGHEST_HZ ? 69 + 12 * Math.log2(hertz / 440) : NaN);
    }
    return pitches;
  };

  // Notes of a voice, in seconds and semitones; `sound` is mono, of `rate` samples a second.
  Space.transcribe = async (sound, rate) => {
    const size = 2 ** Math.round(Math.log2(rate * FRAME_SECONDS));
    const hop = size / 4;
    const pitches = await follow(sound, rate, size, hop);
    const time = (index) => (index * hop + size / 2) / rate;
    const notes = [];
    let held = []; // frames of the note that sounds
    let away = []; // the last of them, if they are at another pitch
    const end = () => {
      if (held.length && time(held.at(-1)) - time(held[0]) > SHORTEST_SECONDS) {
        const pitch = median(held.map((index) => pitches[index]));
        notes.push({ start: time(held[0]), end: time(held.at(-1) + 1), pitch });
      }
      held = [];
    };
    pitches.forEach((pitch, index) => {
      if (Number.isNaN(pitch)) {
        if (index - (held.at(-1) ?? index) > 1) end();
        away = [];
      } else if (held.length > 3 && Math.abs(pitch - median(held.slice(-20).map((each) => pitches[each]))) > ANOTHER) {
        away.push(index);
        if (away.length > 3) {
          end();
          [held, away] = [away, []];
        }
      } else {
        held.push(index);
        away = [];
      }
    });
    end();
    return notes;
  };

  // Notes on the melody's grid, in the tuning of the one who sings.
  const onGrid = (notes, secondsPerStep) => {
    const turn = (note) => 2 * Math.PI * note.pitch;
    const sum = (of) => notes.reduce((total, note) => total + of(turn(note)) * (note.end - note.start), 0);
    const sharp = notes.length > 2 ? Math.atan2(sum(Math.sin), sum(Math.cos)) / (2 * Math.PI) : 0;
    const step = (seconds) => Math.round(seconds / secondsPerStep);
    return notes.map((note, index) => {
      const next = notes[index + 1]?.start ?? Infinity;
      const stop = next - note.end < 1.5 * secondsPerStep ? next : note.end; // a breath between two syllables
      return { start: step(note.start), duration: Math.max(1, step(stop) - step(note.start)), pitch: Math.round(note.pitch - sharp) };
    });
  };

  // Click a bar, record until the melody's end or until `signal` is aborted, and return the notes: null if that was
  // before the first bar. `tell` is given the number of the bar, 0 for the one of clicks.
  Space.hum = async (melody, signal, tell) => {
    const microphone = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: microphone });
    const { player } = Space;
    const parts = [];
    let [source, tape, clicks] = [];
    try {
      if (signal.aborted) return null;
      player.stop();
      player.start();
      const { context } = player;
      await Promise.all([loadPitchy(), loadTape(context)]); // what does not come is said before anybody hums
      source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
      const channels = { channelCount: 1, channelCountMode: "explicit" };
      tape = new AudioWorkletNode(context, "tape", { numberOfOutputs: 0, ...channels });
      tape.port.onmessage = ({ data }) => parts.push(data);
      source.connect(tape);
      clicks = new GainNode(context, { gain: 0.2 });
      clicks.connect(context.destination);
      const step = Space.secondsPerStep(melody);
      const beat = step * melody.steps_per_beat;
      const bar = step * Space.stepsPerBar(melody);
      const begin = context.currentTime + 0.1 + bar;
      for (let at = begin - bar; at < begin - beat / 2; at += beat) click(clicks, at);
      await until(context, begin + bar * melody.bars, signal, () => tell(Math.floor((context.currentTime - begin) / bar) + 1));
      const heard = begin + (context.outputLatency || 0) + (stream.getAudioTracks()[0].getSettings().latency || 0);
      const late = parts.filter(({ at }) => at >= heard - step);
      if (!late.length) return null;
      const sound = new Float32Array(late.reduce((sum, part) => sum + part.sound.length, 0));
      late.reduce((at, part) => (sound.set(part.sound, at), at + part.sound.length), 0);
      const notes = await Space.transcribe(sound, context.sampleRate);
      const ahead = heard - late[0].at;
      return onGrid(notes.map((note) => ({ ...note, start: note.start - ahead, end: note.end - ahead })), step);
    } finally {
      for (const track of stream.getTracks()) track.stop();
      source?.disconnect();
      clicks?.disconnect();
      if (tape) {
        tape.port.onmessage = null;
        tape.port.postMessage("over");
      }
    }
  };

  let tapeModule = null; // the page has one context
  const loadTape = (context) => (tapeModule ||= context.audioWorklet.addModule(URL.createObjectURL(new Blob([TAPE], { type: "text/javascript" }))));

  const click = (output, at) => {
    const source = new OscillatorNode(output.context, { frequency: 1500 });
    source.connect(output);
    source.start(at);
    source.stop(at + CLICK_SECONDS);
  };

  const until = (context, time, signal, tell) =>
    new Promise((done) => {
      const timer = setInterval(() => {
        tell();
        if (context.currentTime < time && !signal.aborted) return;
        clearInterval(timer);
        done();
      }, 50);
    });
})();
