// Sound: one player for the whole page, WebAudio only. Times are grid steps of the melody that plays.
// The samples are those of the server's WAV files, played by the same rules (rendering/sampler.py); until they have
// come, and where they cannot be read, oscillators stand in.
(() => {
  const Space = (window.MelodySpace = window.MelodySpace || {});
  const AHEAD_SECONDS = 0.15; // how far notes are scheduled ahead
  const TICK_MS = 25;
  const ECHO_SECONDS = 1.1;
  const ECHO_LEVEL = 0.16;
  const VIBRATO_CENTS = 12;
  const DECAY_DECIBELS = 100;
  const RELEASE_FALL = Math.log(1000); // 60 dB
  const ACCOMPANIMENT = { program: 0, level: 0.4 }; // piano, and how loud beside the melody

  Space.secondsPerStep = (melody) => {
    const denominator = Number(melody.time_signature.split("/")[1]);
    return ((60 / melody.tempo) * 4) / (denominator * melody.steps_per_beat);
  };
  Space.stepsPerBar = (melody) => Number(melody.time_signature.split("/")[0]) * melody.steps_per_beat;
  Space.totalSteps = (melody) => Space.stepsPerBar(melody) * melody.bars;

  Space.instrumentOf = (program) =>
    Space.instruments.find((each) => each.program === program) ||
    Space.instruments.find((each) => each.program >> 3 === program >> 3) ||
    Space.instruments[0];

  class Player extends EventTarget {
    constructor() {
      super();
      this.melody = null;
      this.isPlaying = false;
      this.loop = false;
      this.waves = new Map();
      this.sounds = new Map(); // the samples of a program, when they have come
      this.loading = new Map();
    }

    // Browsers allow sound after a first touch only, so the context is made by it.
    start() {
      if (!this.context) {
        const context = (this.context = new AudioContext());
        this.master = new GainNode(context, { gain: 0.5 });
        const limiter = new DynamicsCompressorNode(context, { threshold: -12, ratio: 8 });
        const samples = Math.round(ECHO_SECONDS * context.sampleRate);
        const impulse = context.createBuffer(2, samples, context.sampleRate);
        for (const channel of [0, 1]) {
          const data = impulse.getChannelData(channel);
          for (let i = 0; i < samples; i++) data[i] = (2 * Math.random() - 1) * Math.exp((-6 * i) / samples);
        }
        const echo = new ConvolverNode(context, { buffer: impulse });
        const wet = new GainNode(context, { gain: ECHO_LEVEL });
        this.master.connect(limiter);
        this.master.connect(echo).connect(wet).connect(limiter);
        limiter.connect(context.destination);
      }
      if (this.context.state === "suspended") this.context.resume();
    }

    waveOf(instrument) {
      if (!this.waves.has(instrument.name)) {
        const sines = new Float32Array([0, ...instrument.partials]);
        const wave = this.context.createPeriodicWave(new Float32Array(sines.length), sines, { disableNormalization: true });
        this.waves.set(instrument.name, wave);
      }
      return this.waves.get(instrument.name);
    }

    // Fetch the samples of a program once; resolves when they are there, or will not be.
    async load(program) {
      const own = Space.instrumentOf(program).program;
      if (!this.loading.has(own)) {
        const come = fetch(`${Space.files}instruments/${own}.flac`)
          .then((answer) => (answer.ok ? answer.arrayBuffer() : Promise.reject(new Error("no samples"))))
          .then((content) => this.context.decodeAudioData(content))
          .then((sound) => this.sounds.set(own, sound))
          .catch(() => {}); // the oscillators go on
        this.loading.set(own, come);
      }
      await this.loading.get(own);
    }

    voice(pitch, when, seconds, program, bus, loudness = 1) {
      const own = Space.instrumentOf(program).program;
      const sound = this.sounds.get(own);
      if (sound) this.sample(sound, Space.samples[own], pitch, when, seconds, bus, loudness);
      else this.oscillate(pitch, when, seconds, program, bus, loudness);
    }

    sample(sound, samples, pitch, when, seconds, bus, loudness) {
      const { context } = this;
      const near = samples.reduce((a, b) => (Math.abs(b.root - pitch) < Math.abs(a.root - pitch) ? b : a));
      const rate = 2 ** ((pitch - near.root) / 12);
      const end = when + Math.max(seconds, 0.03);
      const source = new AudioBufferSourceNode(context, { buffer: sound, playbackRate: rate });
      if (near.loop) Object.assign(source, { loop: true, loopStart: near.at + near.loop[0], loopEnd: near.at + near.loop[1] });
      const rise = new GainNode(context, { gain: 0 });
      const peak = near.level * loudness;
      rise.gain.setValueAtTime(0, when);
      rise.gain.linearRampToValueAtTime(peak, when + near.attack);
      const floor = Math.max(near.sustain, 1e-5);
      const fall = (near.decay * (-20 * Math.log10(floor))) / DECAY_DECIBELS; // seconds until it holds
      if (fall > 0) rise.gain.exponentialRampToValueAtTime(peak * floor, when + near.attack + fall);
      const held = new GainNode(context, { gain: 1 });
      held.gain.setTargetAtTime(0, end, near.release / RELEASE_FALL);
      source.connect(rise).connect(held).connect(bus);
      if (near.loop) source.start(when, near.at);
      else source.start(when, near.at, near.seconds);
      source.stop(end + near.release);
    }

    oscillate(pitch, when, seconds, program, bus, loudness) {
      const context = this.context;
      const tone = Space.instrumentOf(program);
      const end = when + Math.max(seconds, 0.05);
      const last = end + tone.release + 0.05;
      const source = new OscillatorNode(context, { frequency: 440 * 2 ** ((pitch - 69) / 12) });
      source.setPeriodicWave(this.waveOf(tone));
      const level = new GainNode(context, { gain: 0 });
      const peak = 0.4 * tone.level * loudness;
      level.gain.setValueAtTime(0, when);
      level.gain.linearRampToValueAtTime(peak, when + tone.attack);
      level.gain.setTargetAtTime(peak * tone.sustain, when + tone.attack, tone.decay);
      level.gain.setTargetAtTime(0, end, tone.release / 4);
      if (tone.vibrato) {
        const wobble = new OscillatorNode(context, { frequency: tone.vibrato });
        const depth = new GainNode(context, { gain: 0 });
        depth.gain.setValueAtTime(0, when);
        depth.gain.linearRampToValueAtTime(VIBRATO_CENTS, when + 0.4);
        wobble.connect(depth).connect(source.detune);
        wobble.start(when);
        wobble.stop(last);
      }
      source.connect(level).connect(bus);
      source.start(when);
      source.stop(last);
    }

    // One note by itself, as when it is clicked.
    touch(melody, index) {
      this.start();
      this.load(melody.program);
      const seconds = Math.min(melody.duration[index] * Space.secondsPerStep(melody), 1.5);
      this.voice(melody.pitch[index], this.context.currentTime + 0.01, seconds, melody.program, this.master);
    }

    play(melody, from = 0) {
      this.start();
      this.silence();
      const total = Space.totalSteps(melody);
      this.melody = melody;
      this.isPlaying = true;
      this.load(melody.program);
      const under = Space.chordsOf(melody);
      if (under) this.load(ACCOMPANIMENT.program);
      const part = (notes, program, level) =>
        notes.start.map((start, i) => ({ start, duration: notes.duration[i], pitch: notes.pitch[i], program, level }));
      this.notes = [...part(melody, melody.program, 1), ...(under ? part(under, ACCOMPANIMENT.program, ACCOMPANIMENT.level) : [])]
        .sort((a, b) => a.start - b.start);
      this.bus = new GainNode(this.context, { gain: 1 });
      this.bus.connect(this.master);
      this.anchor(from < total ? from : 0);
      this.timer = setInterval(() => this.schedule(), TICK_MS);
      this.schedule();
      this.announce();
      this.draw();
    }

    anchor(step) {
      this.anchorStep = step;
      this.anchorTime = this.context.currentTime + 0.04;
      const next = this.notes.findIndex((note) => note.start >= step);
      this.next = next < 0 ? this.notes.length : next;
    }

    get position() {
      if (!this.melody || !this.isPlaying) return this.resting || 0;
      const elapsed = Math.max(0, this.context.currentTime - this.anchorTime);
      return this.anchorStep + elapsed / Space.secondsPerStep(this.melody);
    }

    schedule() {
      const { melody } = this;
      const step = Space.secondsPerStep(melody);
      const horizon = this.context.currentTime + AHEAD_SECONDS;
      const total = Space.totalSteps(melody);
      for (;;) {
        while (this.next < this.notes.length) {
          const note = this.notes[this.next];
          const when = this.anchorTime + (note.start - this.anchorStep) * step;
          if (when > horizon) return;
          this.voice(note.pitch, when, note.duration * step, note.program, this.bus, note.level);
          this.next++;
        }
        const end = this.anchorTime + (total - this.anchorStep) * step;
        if (!this.loop) {
          if (this.context.currentTime > end) this.stop();
          return;
        }
        if (end > horizon) return;
        this.anchorStep = 0;
        this.anchorTime = end;
        this.next = 0;
      }
    }

    // After a change of tempo or instrument: the same place, the new sound.
    refresh() {
      if (this.isPlaying) this.play(this.melody, this.position % Space.totalSteps(this.melody));
      else this.announce();
    }

    seek(step) {
      if (this.isPlaying) this.play(this.melody, step);
      else {
        this.resting = step;
        this.dispatchEvent(new Event("tick"));
      }
    }

    silence() {
      clearInterval(this.timer);
      if (!this.bus) return;
      const { bus, context } = this;
      bus.gain.setTargetAtTime(0, context.currentTime, 0.015);
      setTimeout(() => bus.disconnect(), 200);
      this.bus = null;
    }

    stop() {
      this.silence();
      this.isPlaying = false;
      this.resting = 0;
      this.announce();
      this.dispatchEvent(new Event("tick"));
    }

    select(melody) {
      if (this.isPlaying || this.melody === melody) return;
      this.melody = melody;
      this.resting = 0;
      this.announce();
    }

    toggle(melody) {
      if (this.isPlaying && this.melody === melody) this.stop();
      else this.play(melody, this.melody === melody ? this.resting || 0 : 0);
    }

    announce() {
      this.dispatchEvent(new Event("state"));
    }

    draw() {
      cancelAnimationFrame(this.frame);
      const tick = () => {
        this.dispatchEvent(new Event("tick"));
        if (this.isPlaying) this.frame = requestAnimationFrame(tick);
      };
      tick();
    }
  }

  Space.player = new Player();
})();
