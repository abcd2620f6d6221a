// A client of `interfuse serve` for browsers, without dependencies: safetensors files, questions to a service, and a base
// block that runs here, by onnxruntime-web.

const SAFETENSORS = "application/x-safetensors";
const TYPES = { U8: Uint8Array, I64: BigInt64Array, F32: Float32Array };
const CODES = { uint8: "U8", int64: "I64", float32: "F32" };

/** A safetensors file with one tensor, `x`. */
export function toSafetensors({ dtype, shape, data }, metadata = {}) {
  const entry = { dtype: CODES[dtype], shape, data_offsets: [0, data.byteLength] };
  const head = new TextEncoder().encode(JSON.stringify({ __metadata__: metadata, x: entry }));
  const file = new Uint8Array(8 + head.length + data.byteLength);
  new DataView(file.buffer).setBigUint64(0, BigInt(head.length), true);
  file.set(head, 8);
  file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 8 + head.length);
  return file;
}

/** The tensor `x` of a safetensors file, and the file's metadata. */
export function fromSafetensors(file) {
  const length = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const head = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)));
  const { dtype, shape, data_offsets: [begin, end] } = head.x;
  const data = new TYPES[dtype](file.slice(8 + length + begin, 8 + length + end).buffer);
  return { shape, data, metadata: head.__metadata__ ?? {} };
}

/** Features as the codec `int8` writes them: a scale of three bytes and a byte for each number, of each row. */
export function int8({ shape: [rows, ...rest], data }) {
  const width = data.length / rows;
  const head = 2 + 4 * (1 + rest.length);
  const coded = new Uint8Array(head + 3 * rows + data.length);
  const view = new DataView(coded.buffer);
  view.setUint8(0, 0); // float32
  view.setUint8(1, 1 + rest.length);
  [rows, ...rest].forEach((size, axis) => view.setUint32(2 + 4 * axis, size, true));
  const number = new DataView(new ArrayBuffer(4));
  for (let row = 0; row < rows; row++) {
    const numbers = data.subarray(row * width, (row + 1) * width);
    const largest = numbers.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
    const negative = numbers.some((one) => one < 0);
    const steps = negative ? 127 : 255;
    number.setFloat32(0, largest / steps);
    number.setUint32(0, (number.getUint32(0) + 0xff) & ~0xff); // a scale has no last byte, and reaches the largest
    const scale = number.getFloat32(0);
    number.setFloat32(0, negative ? -scale : scale);
    [2, 1, 0].forEach((byte, place) => (coded[head + 3 * row + place] = number.getUint8(byte)));
    const codes = head + 3 * rows + row * width;
    numbers.forEach((one, place) => {
      coded[codes + place] = (scale ? Math.round(one / scale) : 0) + (negative ? steps : 0);
    });
  }
  return { dtype: "uint8", shape: [coded.length], data: coded };
}

/** What a service refused: `code` is for programs, `message` for people. */
export class Refusal extends Error {
  constructor(status, { code, message }) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** A service at an address; empty: that of this page. */
export class Service {
  constructor(address = "", key = "") {
    Object.assign(this, { address, key });
  }

  /** The bytes at a path; with `file`, of what is answered to it. */
  async fetch(path, file) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    const options = file ? { method: "POST", body: file, headers: { ...headers, "Content-Type": SAFETENSORS } } : { headers };
    const answer = await fetch(this.address + path, options);
    if (!answer.ok) throw new Refusal(answer.status, await answer.json());
    return new Uint8Array(await answer.arrayBuffer());
  }

  async blocks() {
    return JSON.parse(new TextDecoder().decode(await this.fetch("/v1/blocks"))).blocks;
  }

  /** What a block, NAME/VERSION, makes of a safetensors file: another one. */
  ask(block, file, codec = "none") {
    return this.fetch(`/v1/blocks/${block}${codec === "none" ? "" : `?codec=${encodeURIComponent(codec)}`}`, file);
  }
}

/** A base block that runs in this browser: what goes in does not leave it. */
export class BaseBlock {
  constructor(ort, session, contract) {
    Object.assign(this, { ort, session, contract });
  }

  /** `model`: the bytes of its ONNX; `contract`: the key that its features are under. */
  static async load(ort, model, contract) {
    return new BaseBlock(ort, await ort.InferenceSession.create(model), contract);
  }

  /** Features as a safetensors file that a modular block takes. */
  async features({ dtype, shape, data }, codec = "none") {
    const [input] = this.session.inputNames;
    const [output] = this.session.outputNames;
    const found = (await this.session.run({ [input]: new this.ort.Tensor(dtype, data, shape) }))[output];
    const features = { dtype: "float32", shape: found.dims, data: found.data };
    if (codec === "none") return toSafetensors(features, { contract: this.contract });
    if (codec === "int8") return toSafetensors(int8(features), { contract: this.contract, codec });
    throw new Error(`no codec ${codec} here`);
  }
}
