/**
 * `melody-vae`: the melody VAE in a page or in node, without a server.
 *
 * Runs the folder that `export_onnx.py` writes. Times are grid steps, counted from the first bar line.
 */

export interface Note {
  /** MIDI pitch, 60 is middle C. */
  pitch: number;
  /** Grid steps from the first bar line. */
  start: number;
  /** Grid steps, at least 1. */
  duration: number;
  /** From 1 to 127; the model has none, MIDI files do. */
  velocity?: number;
}

/** One note at a time, sorted; a bar lasts `meter[0] * stepsPerBeat` steps. */
export interface Melody {
  notes: Note[];
  /** Such as `[6, 8]`. */
  meter: [number, number];
  /** Grid steps per beat; a beat is the meter's denominator. 4 in the release. */
  stepsPerBeat: number;
  bars: number;
  /** The model's token ids, from the start token to the end; written from the notes where they are missing. */
  tokens?: Int32Array;
}

export type Latent = Float32Array;

export interface Progress {
  /** Bytes that have come so far. */
  loaded: number;
  /** Bytes of the files that are needed, 0 as long as that is unknown; the melody encoder's are added when it comes. */
  total: number;
}

export interface LoadOptions {
  onProgress?: (progress: Progress) => void;
  /** `auto` takes WebGPU where `ort` has it and there is one, else WebAssembly; in node `onnxruntime-node`. */
  device?: "auto" | "wasm" | "webgpu" | "node";
  /** The module of `onnxruntime-web` or `onnxruntime-node`; imported by that name where it is missing. */
  ort?: unknown;
  /** How files are fetched; `fetch` by default, in node also from a folder. Must return the file's bytes. */
  fetch?: (url: string) => Promise<Response>;
  /** Threads of a graph: 1 in node, what onnxruntime-web chooses in a page; only a page that is isolated has several. */
  threads?: number;
  /** Name of the Cache storage that keeps the graphs; `melody-vae` by default, `null` keeps none. */
  cache?: string | null;
}

/** What all that writes melodies takes. */
export interface WritingOptions {
  /** Makes the result repeatable: melody i of a seed is the same for every count. */
  seed?: number;
  /** Of the softmax over tokens; 1 by default. */
  temperature?: number;
  /** Share of the probability that tokens are drawn from; the model's own by default where latents are sampled, else 1. */
  topP?: number;
  /** Such as `D dorian`: the only pitches. */
  scale?: string;
  lowestPitch?: number;
  highestPitch?: number;
  /** Bars that a rest between notes may last. */
  maxRest?: number;
  /** Stops the work: the promise is rejected with the signal's reason before the next token. */
  signal?: AbortSignal;
}

export interface ConditionOptions {
  /** Such as `D minor`. */
  key?: string;
  /** In standard deviations from the training data's mean, such as `{note_density: 1}`; names as in `model.attributes`. */
  attributes?: Record<string, number>;
  /** Any other condition of the model, such as `{genre: "Jazz"}`; names and values as in `model.conditions`. */
  conditions?: Record<string, string | number>;
  /** Scale of classifier-free guidance; 1 is none. */
  guidanceScale?: number;
  /** How much of its latent a melody leaves to the melody decoder, from 0 to 1; the model's own by default. */
  noise?: number;
}

export interface SampleOptions extends WritingOptions, ConditionOptions {
  /** Melodies; 1 by default. */
  count?: number;
  /** Bars of each; the model's most by default. More are written section by section. */
  bars?: number;
  /** Such as `6/8` or `[6, 8]`; the model's choice by default. */
  meter?: string | [number, number];
  /**
   * Drawn for each melody; the one is kept that the model's critic takes most for a training melody. The model's own
   * number by default; 1 is the fastest, and what melodies longer than the model's most have.
   */
  candidates?: number;
}

export interface InfillOptions extends WritingOptions, ConditionOptions {
  /** Counted from 0. */
  bars: number[];
  /** Drawn, of which the one is kept that leads best to what follows; 8 by default. */
  candidates?: number;
}

export interface DecodeOptions extends WritingOptions {
  /** As many as the melody has, of which it is made; the model decides where that is a latent. */
  bars?: number;
  /** Such as `6/8` or `[6, 8]`; by default the one of the melody of which it is made, else the model's choice. */
  meter?: string | [number, number];
  /** From 0 to 1. */
  noise?: number;
}

/** A melody or the latent of one. */
export type MelodyOrLatent = Melody | Latent;

/** What `prepareMap` returns: latents of the corners, in one key. */
export interface MelodyMap {
  corners: Latent[];
  moved: Latent[];
  numBars: number | null;
  options: DecodeOptions;
}

export interface MelodyVAE {
  /** `wasm`, `webgpu` or `node`: where the graphs run. */
  readonly device: string;
  readonly latentSize: number;
  /** Bars that a latent holds. */
  readonly maxBars: number;
  readonly stepsPerBeat: number;
  /** Names of the attributes that `sample` takes. */
  readonly attributes: string[];
  /** Names and values of the other conditions. */
  readonly conditions: Record<string, string[]>;
  /** Meters of the vocabulary, such as `6/8`. */
  readonly meters: string[];
  /** Lowest and highest pitch of the vocabulary. */
  readonly pitches: [number, number];
  /** The exported configuration, `onnx_config.json`. */
  readonly config: Record<string, unknown>;
  /** Done when all graphs are there, the melody encoder too: from then on no network is needed. */
  readonly complete: Promise<void>;

  sample(options?: SampleOptions): Promise<Melody[]>;
  /** The posterior's mean. */
  encode(melody: Melody): Promise<Latent>;
  /** Greedy without a seed. */
  decode(latent: Latent, options?: DecodeOptions): Promise<Melody>;
  /** Several at once, in the time of few. */
  decodeAll(latents: Latent[], options?: DecodeOptions): Promise<Melody[]>;
  reconstruct(melody: Melody, options?: DecodeOptions): Promise<Melody>;
  /** A path from one melody to another, ends included; 7 steps by default. */
  interpolate(a: MelodyOrLatent, b: MelodyOrLatent, options?: DecodeOptions & { steps?: number }): Promise<Melody[]>;
  /** Prepare a map between two or four corners, of which `decodeMap` decodes points. */
  prepareMap(corners: MelodyOrLatent[], options?: DecodeOptions): Promise<MelodyMap>;
  /**
   * Decode points of a map.
   *
   * @param points How far each is from the first corner to the second, from 0 to 1, and of four corners from those two to
   *   the others.
   */
  decodeMap(map: MelodyMap, points: number[][], options?: DecodeOptions): Promise<Melody[]>;
  /** Variations that have about `similarity` of the notes in common with the melody; 4 with 0.8 by default. */
  vary(
    melody: MelodyOrLatent,
    options?: DecodeOptions & { similarity?: number; count?: number },
  ): Promise<Melody[]>;
  /** Write some bars anew; the others stay as they are. */
  infill(melody: Melody, options: InfillOptions): Promise<Melody>;
  /** Write on, up to `bars` bars in all; the model's most by default. */
  continueMelody(melody: Melody, options?: WritingOptions & ConditionOptions & { bars?: number }): Promise<Melody>;
  /** Cut a melody of a file to what the model knows: its grid, pitches, meters and most bars, from bar `firstBar`. */
  fit(melody: Melody, options?: { firstBar?: number; bars?: number }): Melody;
  /** Key by the Krumhansl-Schmuckler algorithm, such as `D minor`. */
  keyOf(melody: Melody): string;
  /** Free the graphs. */
  dispose(): Promise<void>;
}

/** Load a model from the URL (in node also the path) of the folder that `export_onnx.py` wrote. */
export function load(url: string | URL, options?: LoadOptions): Promise<MelodyVAE>;

export interface Track {
  name: string;
  /** General MIDI program from 0, of its first note. */
  program: number;
  isDrum: boolean;
  /** All notes; start and duration in quarter notes. */
  notes: { pitch: number; start: number; duration: number; velocity: number }[];
}

export interface MidiFile {
  tracks: Track[];
  /** Of the first tempo, in quarter notes per minute. */
  tempo: number;
  meter: [number, number];
  /** Whether a track of the file is cut off or broken; what came before that is there. */
  isCut: boolean;
  /** Of each track the data set's lead score: how likely it is, from 0 to 1, that it is the tune. */
  leadScores: number[];
  /** Index of the track that the melody is of, the likeliest by default; -1 for none. */
  melodyTrack: number;
  /** The melody of that track, one note at a time, on a grid of `stepsPerBeat`; `null` where none has notes of its range. */
  melody: Melody | null;
}

/**
 * Read a MIDI file of format 0 or 1.
 *
 * @throws {MidiError} with a sentence for people where the file is broken or too large.
 */
export function readMidi(bytes: Uint8Array | ArrayBuffer, options?: { track?: number; stepsPerBeat?: number }): MidiFile;

/** Write a melody as a MIDI file of format 0. */
export function writeMidi(melody: Melody, options?: { tempo?: number; program?: number; name?: string }): Uint8Array;

export class MidiError extends Error {}
