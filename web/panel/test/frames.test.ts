import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ackFrame, clampSize, decode, eofFrame, FrameError, inputFrames, MAX_FRAME, pingFrame, resizeFrame, signalFrame } from '../src/lib/term/frames.ts';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const bytes = (s: string) => new Uint8Array(Buffer.from(s.replace(/\s/g, ''), 'hex'));

// The expected bytes are written out, not computed: this is the contract with internal/term.
describe('what we send', () => {
  it('is, byte for byte, what the contract says', () => {
    expect(inputFrames('ls\r').map(hex)).toEqual(['016c730d']);
    expect(inputFrames('é中').map(hex)).toEqual(['01c3a9e4b8ad']);
    expect(inputFrames(Uint8Array.of(0, 255)).map(hex)).toEqual(['0100ff']);
    expect(inputFrames('')).toEqual([]);
    expect(hex(resizeFrame(80, 24))).toBe('0200500018');
    expect(hex(resizeFrame(0x1234, 0xabcd))).toBe('021234abcd');
    expect(hex(ackFrame(0))).toBe('030000000000000000');
    expect(hex(ackFrame(0x1_0203_0405))).toBe('030000000102030405');
    expect(hex(ackFrame(Number.MAX_SAFE_INTEGER))).toBe('03001fffffffffffff');
    expect(hex(eofFrame())).toBe('04');
    expect(hex(signalFrame(15))).toBe('050f');
    expect(hex(pingFrame())).toBe('06');
  });

  it('never asks for a size the server refuses', () => {
    fc.assert(
      fc.property(fc.oneof(fc.integer(), fc.double()), (n) => {
        const size = clampSize(n);
        expect(Number.isInteger(size) && size >= 1 && size <= 0xffff).toBe(true);
      }),
    );
  });

  it('cuts long input into frames that fit, and loses nothing', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 200_000 }), fc.integer(), (length, seed) => {
        const data = Uint8Array.from({ length }, (_, i) => (i * 31 + seed) & 0xff);
        const frames = inputFrames(data);
        for (const frame of frames) {
          expect(frame[0]).toBe(0x01);
          expect(frame.byteLength).toBeLessThanOrEqual(MAX_FRAME);
          expect(frame.byteLength).toBeGreaterThan(1);
        }
        expect(Buffer.concat(frames.map((frame) => frame.subarray(1))).equals(data)).toBe(true);
      }),
      { numRuns: 30 },
    );
  });
});

describe('what we read', () => {
  it('is, byte for byte, what the contract says', () => {
    expect(decode(bytes('11 0000000000000005 6869'))).toEqual({ op: 'output', offset: 5, data: bytes('6869') });
    expect(decode(bytes('11 001fffffffffffff'))).toEqual({ op: 'output', offset: Number.MAX_SAFE_INTEGER, data: bytes('') });
    expect(decode(bytes('12 6f6f7073'))).toEqual({ op: 'stderr', data: bytes('6f6f7073') });
    expect(decode(bytes('13 00000000'))).toEqual({ op: 'exit', code: 0, reason: '' });
    expect(decode(bytes('13 00000089 6b696c6c6564'))).toEqual({ op: 'exit', code: 137, reason: 'killed' });
    expect(decode(bytes('13 ffffffff e4b8ad'))).toEqual({ op: 'exit', code: -1, reason: '中' });
    expect(decode(bytes('14 0000000000080000 00'))).toEqual({ op: 'hello', offset: 524288, lost: false, readOnly: false });
    expect(decode(bytes('14 0000000000000000 01'))).toMatchObject({ lost: true, readOnly: false });
    expect(decode(bytes('14 0000000000000000 02'))).toMatchObject({ lost: false, readOnly: true });
    expect(decode(bytes('14 0000000000000000 ff'))).toMatchObject({ lost: true, readOnly: true });
    expect(decode(bytes('15 6e6f'))).toEqual({ op: 'error', message: 'no' });
    expect(decode(bytes('16'))).toEqual({ op: 'pong' });
  });

  it('refuses what is too short, too long, unknown, or from a client', () => {
    const wrong = ['', '11', '11 00000000000000', '13', '13 000000', '14', '14 0000000000000000', '14 0000000000000000 00 00', '16 00', '00', '17', '01 61', '06', 'ff'];
    for (const frame of wrong) expect(() => decode(bytes(frame)), frame).toThrow(FrameError);
    expect(() => decode(bytes('11 0020000000000000 61')), 'beyond 2^53').toThrow(FrameError);
    expect(() => decode(bytes('11 001fffffffffffff 61')), 'runs beyond 2^53').toThrow(FrameError);
    expect(() => decode(new Uint8Array(MAX_FRAME + 1).fill(0x12))).toThrow(FrameError);
    expect(decode(new Uint8Array(MAX_FRAME).fill(0x12)).op).toBe('stderr');
  });

  it('survives any bytes: a frame or a FrameError, never anything else', () => {
    const anyFrame = fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      fc.tuple(fc.constantFrom(0x11, 0x12, 0x13, 0x14, 0x15, 0x16), fc.uint8Array({ maxLength: 40 })).map(([op, rest]) => Uint8Array.of(op, ...rest)),
    );
    fc.assert(
      fc.property(anyFrame, (raw) => {
        let frame;
        try {
          frame = decode(raw);
        } catch (error) {
          expect(error).toBeInstanceOf(FrameError);
          return;
        }
        if (frame.op === 'output') {
          expect(Number.isSafeInteger(frame.offset + frame.data.byteLength)).toBe(true);
          expect(frame.data.byteLength).toBe(raw.byteLength - 9);
        }
        if (frame.op === 'hello') expect(Number.isSafeInteger(frame.offset)).toBe(true);
      }),
      { numRuns: 5000 },
    );
  });

  it('reads a view into a larger buffer, as sockets hand them out', () => {
    fc.assert(
      fc.property(fc.nat({ max: 2 ** 48 }), fc.uint8Array({ maxLength: 64 }), fc.nat({ max: 32 }), (offset, data, lead) => {
        const frame = Buffer.alloc(9 + data.length);
        frame[0] = 0x11;
        frame.writeBigUInt64BE(BigInt(offset), 1);
        frame.set(data, 9);
        const larger = new Uint8Array(lead + frame.length + 7).fill(0xaa);
        larger.set(frame, lead);
        expect(decode(larger.subarray(lead, lead + frame.length))).toEqual({ op: 'output', offset, data });
      }),
    );
  });
});
