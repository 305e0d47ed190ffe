import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { closeWords, Connection, type TermState } from '../src/lib/term/connection.ts';
import { ApiError } from '../src/lib/api/client.ts';

/** A WebSocket the test plays the server of. */
class FakeSocket {
  static OPEN = 1;
  static all: FakeSocket[] = [];
  readyState = 0;
  sent: string[] = [];
  onopen?: () => void;
  onmessage?: (event: { data: ArrayBuffer | string }) => void;
  onclose?: (event: { code: number; reason: string }) => void;

  constructor(
    readonly url: string,
    readonly protocol: string,
  ) {
    FakeSocket.all.push(this);
  }
  send(data: ArrayBufferView) {
    this.sent.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('hex'));
  }
  close() {
    this.readyState = 3;
  }
  open() {
    this.readyState = 1;
    this.onopen?.();
  }
  frame(hex: string) {
    this.onmessage?.({ data: new Uint8Array(Buffer.from(hex.replace(/\s/g, ''), 'hex')).buffer });
  }
  die(code = 1006, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
}

const hello = (offset: number, flags = 0) => `14${offset.toString(16).padStart(16, '0')}${flags.toString(16).padStart(2, '0')}`;
const output = (offset: number, text: string) => `11${offset.toString(16).padStart(16, '0')}${Buffer.from(text).toString('hex')}`;

let states: TermState[];
let screen: string;
let size: { cols: number; rows: number };
let sessions: () => Promise<{ id: string; args: null; tty: boolean; exited: boolean; exitCode?: number }[]>;
let checks: number;
let gaps: number;

async function connect() {
  const connection = new Connection({
    env: 'e1',
    session: 's1',
    size: () => size,
    write: (data, done) => {
      screen += Buffer.from(data).toString();
      done();
    },
    state: (state) => states.push(state),
    gap: () => gaps++,
    error: () => undefined,
    ensureFresh: () => Promise.resolve(),
    sessions: () => sessions(),
    checkSignIn: () => Promise.resolve(checks++),
  });
  connection.start();
  await vi.advanceTimersByTimeAsync(0);
  return connection;
}

const last = () => FakeSocket.all.at(-1)!;
const offsetAsked = () => new URL(last().url).searchParams.get('offset');

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal('WebSocket', FakeSocket);
  vi.stubGlobal('location', { origin: 'http://learn.example' });
  vi.stubGlobal('addEventListener', () => undefined);
  vi.stubGlobal('removeEventListener', () => undefined);
  vi.stubGlobal('document', { addEventListener: () => undefined, removeEventListener: () => undefined });
  FakeSocket.all = [];
  states = [];
  screen = '';
  size = { cols: 80, rows: 24 };
  sessions = () => Promise.resolve([{ id: 's1', args: null, tty: true, exited: false }]);
  checks = gaps = 0;
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe('a terminal’s connection', () => {
  it('begins at the ring’s start and resumes at the next byte', async () => {
    await connect();
    expect(last().url).toBe('ws://learn.example/api/v1/environments/e1/sessions/s1/attach?cols=80&rows=24');
    expect(last().protocol).toBe('learnos.term.v1');
    last().open();
    last().frame(hello(100));
    last().frame(output(100, 'hello'));
    expect(states.at(-1)).toEqual({ is: 'connected' });

    last().die();
    expect(states.at(-1)).toMatchObject({ is: 'reconnecting' });
    await vi.advanceTimersByTimeAsync(300);
    expect(offsetAsked()).toBe('105');
    last().open();
    last().frame(hello(105));
    last().frame(output(105, ' again'));
    expect(screen).toBe('hello again');
    expect(gaps).toBe(0);
    expect(states.at(-1)).toEqual({ is: 'connected' });
  });

  it('acknowledges what was drawn, soon and once', async () => {
    await connect();
    last().open();
    last().frame(hello(0));
    last().frame(output(0, 'ab'));
    last().frame(output(2, 'cd'));
    expect(last().sent).toEqual([]);
    await vi.advanceTimersByTimeAsync(200);
    expect(last().sent).toEqual(['030000000000000004']);
  });

  it('tells the size that changed on the way, and keys typed on the way', async () => {
    const connection = await connect();
    last().open();
    size = { cols: 100, rows: 30 };
    connection.resize(100, 30);
    connection.type('ls\r');
    expect(last().sent).toEqual([]);
    last().frame(hello(0));
    expect(last().sent).toEqual(['016c730d', '020064001e']);
  });

  it('drops a connection that speaks nonsense, and resumes', async () => {
    await connect();
    last().open();
    last().frame(hello(0));
    last().frame(output(0, 'abc'));
    last().frame('ff00');
    expect(states.at(-1)).toMatchObject({ is: 'reconnecting' });
    await vi.advanceTimersByTimeAsync(300);
    expect(offsetAsked()).toBe('3');
  });

  it('ends with the shell', async () => {
    await connect();
    last().open();
    last().frame(hello(0));
    last().frame('13 00000003');
    last().die(1000);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(states.at(-1)).toEqual({ is: 'exited', code: 3, reason: '' });
    expect(FakeSocket.all).toHaveLength(1);
  });

  it('says when the shell is gone: by close code, or because the gateway lists it no more', async () => {
    await connect();
    last().open();
    last().die(4404, '{"code":"not_found","hint":"Start a new one."}');
    await vi.advanceTimersByTimeAsync(0);
    expect(states.at(-1)).toEqual({ is: 'vanished' });

    sessions = () => Promise.reject(new ApiError(404, 'not_found', 'gone', ''));
    await connect();
    last().die();
    await vi.advanceTimersByTimeAsync(0);
    expect(states.at(-1)).toEqual({ is: 'vanished' });
  });

  it('keeps trying while the node is away, saying so, and asks about a sign-in that ended', async () => {
    await connect();
    last().open();
    last().frame(hello(0));
    last().die(1013, '{"code":"node_offline","hint":"Its node is away."}');
    await vi.advanceTimersByTimeAsync(0);
    expect(states.at(-1)).toMatchObject({ is: 'reconnecting', code: 'node_offline', hint: 'Its node is away.' });
    for (let i = 0; i < 5; i++) {
      await vi.advanceTimersByTimeAsync(5000);
      last().open();
      last().die(1013, '{"code":"node_offline","hint":"Its node is away."}');
    }
    expect(FakeSocket.all.length).toBeGreaterThan(4);
    await vi.advanceTimersByTimeAsync(5000);
    last().open();
    last().die(4401);
    await vi.advanceTimersByTimeAsync(0);
    expect(checks).toBe(1);
  });

  it('notices a connection that fell silent', async () => {
    await connect();
    last().open();
    last().frame(hello(0));
    await vi.advanceTimersByTimeAsync(21_000);
    expect(last().sent).toEqual(['06']);
    last().frame('16');
    await vi.advanceTimersByTimeAsync(21_000);
    expect(last().sent).toEqual(['06', '06']);
    await vi.advanceTimersByTimeAsync(8_500);
    expect(FakeSocket.all).toHaveLength(2);
  });

  it('reads hints out of close reasons, whatever they hold', () => {
    expect(closeWords('{"code":"x","hint":"do that"}')).toEqual({ code: 'x', hint: 'do that' });
    for (const other of ['', 'plain', 'null', '7', '{"hint":3}', '{"hint"']) expect(closeWords(other)).toEqual({ code: '', hint: '' });
  });
});
