// One terminal's way to its session: the socket that comes back, where we are in the output, what is typed.
// Knows nothing of what draws it.
import { ApiError } from '../api/client.ts';
import type { SessionInfo } from '../api/types.ts';
import { Flow } from './flow.ts';
import { ackFrame, decode, pingFrame, resizeFrame, SUBPROTOCOL } from './frames.ts';
import { InputWindow } from './input.ts';
import { ResilientSocket } from './socket.ts';

export type TermState =
  | { is: 'connecting' }
  | { is: 'connected' }
  /** `retryAt`: a Date.now() time; undefined while trying. `hint`: what the server says about it, with its code. */
  | { is: 'reconnecting'; retryAt: number | undefined; code: string; hint: string }
  | { is: 'exited'; code: number; reason: string }
  /** The session is not there any more, and nobody knows how it ended. */
  | { is: 'vanished' };

export interface ConnectionOptions {
  env: string;
  session: string;
  size(): { cols: number; rows: number };
  write(data: Uint8Array, done: () => void): void;
  state(state: TermState): void;
  /** Output was lost on the way. */
  gap(): void;
  /** The server said something went wrong. */
  error(message: string): void;
  ensureFresh(): Promise<void>;
  sessions(): Promise<SessionInfo[]>;
  /** The server says that the sign-in ended: find out, and act on it. */
  checkSignIn(): Promise<unknown>;
}

const ACK_DELAY = 150;

// Close codes of the gateway.
const SIGNED_OUT = 4401;
const NO_SESSION = 4404;

/** A close reason's words, which are JSON `{"code","hint"}` when the gateway closed. */
export function closeWords(reason: string): { code: string; hint: string } {
  try {
    const { code, hint } = (JSON.parse(reason) ?? {}) as { code?: unknown; hint?: unknown };
    return { code: typeof code === 'string' ? code : '', hint: typeof hint === 'string' ? hint : '' };
  } catch {
    return { code: '', hint: '' };
  }
}

const silent = { code: '', hint: '' };

export class Connection {
  private readonly socket: ResilientSocket;
  private readonly flow: Flow;
  private readonly input: InputWindow;
  /** The size the server knows. */
  private told = { cols: 0, rows: 0 };
  private was = false;
  private over = false;
  private words = silent;
  private waiting: TermState | undefined;
  private ackTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly o: ConnectionOptions) {
    this.flow = new Flow({
      write: o.write,
      ack: (offset) => void this.socket.send(ackFrame(offset)),
      scheduleAck: () => (this.ackTimer = setTimeout(() => this.flow.flushAck(), ACK_DELAY)),
    });
    this.input = new InputWindow({
      send: (frame) => void this.socket.send(frame),
      ping: () => void this.socket.send(pingFrame()),
    });
    this.socket = new ResilientSocket({
      protocol: SUBPROTOCOL,
      url: async () => {
        await o.ensureFresh();
        const { cols, rows } = (this.told = o.size());
        const query = new URLSearchParams({ cols: String(cols), rows: String(rows) });
        if (this.flow.resumeAt !== undefined) query.set('offset', String(this.flow.resumeAt));
        return `${location.origin.replace(/^http/, 'ws')}/api/v1/environments/${encodeURIComponent(o.env)}/sessions/${encodeURIComponent(o.session)}/attach?${query}`;
      },
      message: (data) => this.take(data),
      state: (link, retryAt) => {
        if (this.over) return;
        if (link.state === 'open') o.state({ is: 'connected' });
        else if (link.state === 'waiting') {
          this.input.disconnect();
          this.words = silent;
          o.state((this.waiting = { is: 'reconnecting', retryAt, ...silent }));
        } else if (link.state === 'connecting') o.state(this.was ? { is: 'reconnecting', retryAt: undefined, ...this.words } : { is: 'connecting' });
      },
      lost: (greeted, code, reason) => this.whyLost(greeted, code, reason),
      ping: () => (this.input.busy ? undefined : pingFrame()),
    });
  }

  start(): void {
    this.socket.start();
  }

  close(): void {
    this.over = true;
    clearTimeout(this.ackTimer);
    this.socket.finish();
  }

  type(data: string | Uint8Array): boolean {
    return this.input.write(data);
  }

  resize(cols: number, rows: number): void {
    // Before the hello nobody would hear it; the hello makes up for it.
    if (this.socket.open && this.socket.send(resizeFrame(cols, rows))) this.told = { cols, rows };
  }

  private end(state: TermState): void {
    if (this.over) return;
    this.over = true;
    this.socket.finish();
    this.o.state(state);
  }

  private take(data: ArrayBuffer | string): void {
    if (this.over) return;
    let frame;
    try {
      if (typeof data === 'string') throw new Error('text where bytes belong');
      frame = decode(new Uint8Array(data));
    } catch {
      this.socket.drop(1002, 'malformed frame'); // and resume where we were
      return;
    }
    switch (frame.op) {
      case 'hello': {
        this.was = true;
        if (this.flow.begin(frame.offset) > 0) this.o.gap();
        this.socket.greeted();
        if (!frame.readOnly) this.input.connect();
        // It may have changed while we were on our way.
        const { cols, rows } = this.o.size();
        if (cols !== this.told.cols || rows !== this.told.rows) this.resize(cols, rows);
        break;
      }
      case 'output':
        if (this.flow.output(frame.offset, frame.data) > 0) this.o.gap();
        break;
      case 'stderr':
        this.o.write(frame.data, () => undefined);
        break;
      case 'exit':
        this.end({ is: 'exited', code: frame.code, reason: frame.reason });
        break;
      case 'error':
        this.o.error(frame.message);
        break;
      case 'pong':
        this.input.pong();
        break;
    }
  }

  /** Asks the gateway what became of the session, since a closed socket does not say. */
  private async whyLost(greeted: boolean, code: number, reason: string): Promise<boolean> {
    if (code === NO_SESSION) this.end({ is: 'vanished' });
    if (code === SIGNED_OUT) await this.o.checkSignIn();
    const words = closeWords(reason);
    if (words.hint && this.waiting?.is === 'reconnecting' && !this.over) {
      this.words = words;
      this.o.state({ ...this.waiting, ...words });
    }
    // The first loss of a good connection is nearly always the network: just come back.
    if (greeted || this.over) return false;
    try {
      const mine = (await this.o.sessions()).find((session) => session.id === this.o.session);
      if (!mine) this.end({ is: 'vanished' });
      // An exited one can still be read to its end, unless it keeps refusing us.
      else if (mine.exited && this.was) this.end({ is: 'exited', code: mine.exitCode ?? 0, reason: '' });
    } catch (error) {
      if (error instanceof ApiError && (error.status === 404 || error.status === 410)) this.end({ is: 'vanished' });
    }
    return this.over;
  }
}
