import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ACK_EVERY, Flow, HIGH_WATER } from '../src/lib/term/flow.ts';
import { InputWindow, KEPT, WINDOW } from '../src/lib/term/input.ts';

/** A terminal that parses when told, and a server that hears acks. */
function rig() {
  const written: Uint8Array[] = [];
  const waiting: (() => void)[] = [];
  const acks: number[] = [];
  let scheduled = 0;
  const flow = new Flow({
    write: (data, done) => {
      written.push(data.slice());
      waiting.push(done);
    },
    ack: (offset) => acks.push(offset),
    scheduleAck: () => scheduled++,
  });
  return {
    flow,
    acks,
    parse: (n = Infinity) => {
      for (let i = 0; i < n && waiting.length > 0; i++) waiting.shift()!();
    },
    text: () => Buffer.concat(written),
    inTerminal: () => waiting.length,
    scheduled: () => scheduled,
  };
}

const stream = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 0xff);

describe('where we are in the output', () => {
  it('asks for the ring’s start at first and resumes behind the last byte after that', () => {
    const { flow, parse } = rig();
    expect(flow.resumeAt).toBeUndefined();
    expect(flow.begin(1000)).toBe(0);
    flow.output(1000, stream(10));
    expect(flow.resumeAt).toBe(1010);
    parse();
    expect(flow.consumed).toBe(1010);
  });

  it('drops bytes it already has and keeps the rest of the frame', () => {
    const r = rig();
    const all = stream(100);
    r.flow.begin(0);
    r.flow.output(0, all.subarray(0, 60));
    r.flow.begin(40);
    expect(r.flow.output(40, all.subarray(40, 50))).toBe(0);
    expect(r.flow.output(50, all.subarray(50, 100))).toBe(0);
    r.parse();
    expect(r.text().equals(all)).toBe(true);
  });

  it('tells about output the server no longer has, in a hello or in front of a frame', () => {
    const r = rig();
    r.flow.begin(0);
    r.flow.output(0, stream(10));
    expect(r.flow.begin(500)).toBe(490);
    expect(r.flow.output(500, stream(5))).toBe(0);
    expect(r.flow.output(600, stream(5))).toBe(95);
    r.parse();
    expect(r.flow.consumed).toBe(605);
  });

  it('writes each byte of the stream once and in order, however it is cut, repeated and resumed', () => {
    const cut = fc.array(fc.record({ back: fc.nat({ max: 80 }), length: fc.integer({ min: 1, max: 300 }), reconnect: fc.boolean(), parse: fc.nat({ max: 3 }) }), { minLength: 1, maxLength: 60 });
    fc.assert(
      fc.property(cut, (steps) => {
        const all = stream(20_000);
        const r = rig();
        let sent = 0;
        r.flow.begin(0);
        for (const { back, length, reconnect, parse } of steps) {
          if (reconnect) {
            // The server may go further back than asked, never forward.
            sent = Math.max(0, (r.flow.resumeAt ?? 0) - back);
            expect(r.flow.begin(sent)).toBe(0);
          }
          const end = Math.min(all.length, sent + length);
          if (end > sent) expect(r.flow.output(sent, all.subarray(sent, end))).toBe(0);
          sent = end;
          r.parse(parse);
        }
        r.parse();
        const had = r.flow.received!;
        expect(r.text().equals(all.subarray(0, had))).toBe(true);
        expect(r.flow.consumed).toBe(had);
      }),
    );
  });
});

describe('acks', () => {
  it('come every 64 KiB parsed, and by the timer for the rest', () => {
    const r = rig();
    r.flow.begin(0);
    r.flow.output(0, stream(100));
    expect(r.scheduled()).toBe(0);
    r.parse();
    expect(r.acks).toEqual([]);
    expect(r.scheduled()).toBe(1);
    r.flow.flushAck();
    expect(r.acks).toEqual([100]);
    for (let at = 100; at < 100 + 3 * ACK_EVERY; at += 32_768) r.flow.output(at, stream(32_768));
    r.parse();
    expect(r.acks.length).toBeGreaterThanOrEqual(3);
  });

  it('never claim bytes this connection did not send: the server ends a connection that does', () => {
    const r = rig();
    r.flow.begin(0);
    r.flow.output(0, stream(50_000));
    r.parse();
    r.flow.begin(10_000); // went further back than it had to
    r.flow.flushAck();
    r.flow.output(10_000, stream(20_000));
    r.flow.flushAck();
    expect(r.acks.at(-1)).toBe(30_000);
    r.flow.output(30_000, stream(25_000));
    r.parse();
    r.flow.flushAck();
    expect(r.acks.at(-1)).toBe(55_000);
  });

  it('keep a server with a 512 KiB window going, and the terminal below its high water', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 4_000_000 }), fc.integer({ min: 2000, max: 60_000 }), (total, chunk) => {
        const r = rig();
        r.flow.begin(0);
        let sent = 0;
        let most = 0;
        const acked = () => r.acks.at(-1) ?? 0;
        for (let round = 0; round < 1e6 && (sent < total || r.inTerminal() > 0); round++) {
          while (sent < total && sent < acked() + 524_288) {
            const n = Math.min(chunk, total - sent, acked() + 524_288 - sent);
            r.flow.output(sent, new Uint8Array(n));
            sent += n;
          }
          most = Math.max(most, r.flow.pending);
          r.parse(1);
          if (sent < total && r.inTerminal() === 0) r.flow.flushAck(); // the timer
        }
        expect(sent).toBe(total);
        expect(r.flow.consumed).toBe(total);
        expect(most).toBeLessThanOrEqual(524_288);
      }),
      { numRuns: 25 },
    );
    const r = rig();
    r.flow.begin(0);
    for (let at = 0; at < 524_288; at += 32_768) r.flow.output(at, new Uint8Array(32_768));
    expect(r.text().byteLength).toBe(HIGH_WATER);
    expect(HIGH_WATER).toBeLessThanOrEqual(500_000);
    r.parse();
    expect(r.text().byteLength).toBe(524_288);
  });
});

describe('input', () => {
  function inputRig() {
    const sent: Uint8Array[] = [];
    let pings = 0;
    const input = new InputWindow({ send: (frame) => void sent.push(frame), ping: () => void pings++ });
    return { input, bytes: () => sent.reduce((n, f) => n + f.byteLength - 1, 0), pings: () => pings };
  }

  it('typed while away arrives when back; a paste while away does not', () => {
    const r = inputRig();
    expect(r.input.write('ls\r')).toBe(true);
    expect(r.input.write('x'.repeat(KEPT))).toBe(false);
    expect(r.bytes()).toBe(0);
    r.input.connect();
    expect(r.bytes()).toBe(3);
  });

  it('of any size is under way only by a window, and goes on with each pong', () => {
    const r = inputRig();
    r.input.connect();
    r.input.write('x'.repeat(10 * WINDOW));
    let before = 0;
    for (let i = 0; i < 100 && r.bytes() < 10 * WINDOW; i++) {
      expect(r.bytes() - before).toBeLessThanOrEqual(WINDOW);
      expect(r.pings()).toBe(i + 1);
      before = r.bytes();
      r.input.pong();
    }
    expect(r.bytes()).toBe(10 * WINDOW);
  });
});
