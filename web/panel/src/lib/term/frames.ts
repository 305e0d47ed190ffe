// The terminal wire protocol, browser side. One WebSocket message is one frame: an op byte, then the op's
// fields, big-endian. The Go side is package internal/term; the two must agree byte for byte.
//
// This file knows bytes only: no sockets, no terminal.

export const SUBPROTOCOL = 'learnos.term.v1';

/** The largest frame either side may send, op byte included. */
export const MAX_FRAME = 64 * 1024;

export const Op = {
  Input: 0x01,
  Resize: 0x02,
  Ack: 0x03,
  Eof: 0x04,
  Signal: 0x05,
  Ping: 0x06,
  Output: 0x11,
  Stderr: 0x12,
  Exit: 0x13,
  Hello: 0x14,
  Error: 0x15,
  Pong: 0x16,
} as const;

export type ServerFrame =
  /** `offset` is the stream position of the first byte of `data`. */
  | { op: 'output'; offset: number; data: Uint8Array }
  | { op: 'stderr'; data: Uint8Array }
  | { op: 'exit'; code: number; reason: string }
  /** `lost`: output before `offset` is gone. `readOnly`: input will be ignored. */
  | { op: 'hello'; offset: number; lost: boolean; readOnly: boolean }
  | { op: 'error'; message: string }
  | { op: 'pong' };

/** A frame that breaks the protocol. The connection that carried it can't be trusted further. */
export class FrameError extends Error {
  override name = 'FrameError';
}

const utf8 = new TextDecoder('utf-8');
const encoder = new TextEncoder();

function u64(view: DataView, at: number): number {
  const value = view.getBigUint64(at);
  // 2^53 bytes of terminal output is a thousand years of `yes`: past it is corruption.
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new FrameError(`offset ${value} is beyond 2^53`);
  return Number(value);
}

function expect(ok: boolean, op: string, length: number): void {
  if (!ok) throw new FrameError(`${op} frame of ${length} bytes has the wrong length`);
}

/** Reads one frame. `data` of the result shares memory with `bytes`. Throws FrameError on anything malformed. */
export function decode(bytes: Uint8Array): ServerFrame {
  const n = bytes.byteLength;
  if (n === 0) throw new FrameError('empty frame');
  if (n > MAX_FRAME) throw new FrameError(`frame of ${n} bytes is larger than ${MAX_FRAME}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, n);
  const op = bytes[0]!;
  switch (op) {
    case Op.Output: {
      expect(n >= 9, 'output', n);
      const offset = u64(view, 1);
      if (n - 9 > Number.MAX_SAFE_INTEGER - offset) throw new FrameError('output runs beyond 2^53');
      return { op: 'output', offset, data: bytes.subarray(9) };
    }
    case Op.Stderr:
      return { op: 'stderr', data: bytes.subarray(1) };
    case Op.Exit:
      expect(n >= 5, 'exit', n);
      return { op: 'exit', code: view.getInt32(1), reason: utf8.decode(bytes.subarray(5)) };
    case Op.Hello: {
      expect(n === 10, 'hello', n);
      const flags = bytes[9]!;
      return { op: 'hello', offset: u64(view, 1), lost: (flags & 1) !== 0, readOnly: (flags & 2) !== 0 };
    }
    case Op.Error:
      return { op: 'error', message: utf8.decode(bytes.subarray(1)) };
    case Op.Pong:
      expect(n === 1, 'pong', n);
      return { op: 'pong' };
    default:
      throw new FrameError(`unknown op 0x${op.toString(16).padStart(2, '0')}`);
  }
}

// Much smaller than MAX_FRAME, so that a Ctrl+C typed behind a long paste is not stuck behind one big message.
const INPUT_CHUNK = 16 * 1024;

/** Input frames for what was typed or pasted. Long input becomes several frames, in order. */
export function inputFrames(data: string | Uint8Array): Uint8Array<ArrayBuffer>[] {
  const bytes = typeof data === 'string' ? encoder.encode(data) : data;
  const frames: Uint8Array<ArrayBuffer>[] = [];
  for (let at = 0; at < bytes.byteLength; at += INPUT_CHUNK) {
    const part = bytes.subarray(at, at + INPUT_CHUNK);
    const frame = new Uint8Array(1 + part.byteLength);
    frame[0] = Op.Input;
    frame.set(part, 1);
    frames.push(frame);
  }
  return frames;
}

export function resizeFrame(cols: number, rows: number): Uint8Array<ArrayBuffer> {
  const frame = new Uint8Array(5);
  const view = new DataView(frame.buffer);
  frame[0] = Op.Resize;
  view.setUint16(1, clampSize(cols));
  view.setUint16(3, clampSize(rows));
  return frame;
}

/** A terminal side as the wire takes it: 1 to 65535. */
export function clampSize(n: number): number {
  return Math.min(0xffff, Math.max(1, Math.floor(n) || 1));
}

/** Tells the server that every byte before `offset` has been drawn. */
export function ackFrame(offset: number): Uint8Array<ArrayBuffer> {
  const frame = new Uint8Array(9);
  frame[0] = Op.Ack;
  new DataView(frame.buffer).setBigUint64(1, BigInt(offset));
  return frame;
}

export const eofFrame = (): Uint8Array<ArrayBuffer> => Uint8Array.of(Op.Eof);
export const signalFrame = (signal: number): Uint8Array<ArrayBuffer> => Uint8Array.of(Op.Signal, signal & 0xff);
export const pingFrame = (): Uint8Array<ArrayBuffer> => Uint8Array.of(Op.Ping);
