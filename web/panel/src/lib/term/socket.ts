// A WebSocket that comes back: drives the machine in reconnect.ts with real sockets and timers.
import { step, type Effect, type Happening, type Link } from './reconnect.ts';

export interface SocketHandlers {
  /** Where to connect now. May first refresh the sign-in; a rejection counts as a lost connection. */
  url(): Promise<string>;
  protocol: string;
  message(data: ArrayBuffer | string): void;
  /** Each change of state; `retryAt` is a Date.now() time while waiting. */
  state(link: Link, retryAt: number | undefined): void;
  /** The connection went away. Say true to stop for good. */
  lost(greeted: boolean, code: number, reason: string): Promise<boolean>;
  /**
   * What to send when nothing was heard for a while. Undefined: an answer can't be expected now, so
   * silence proves nothing.
   */
  ping?: () => ArrayBufferView<ArrayBuffer> | undefined;
}

const QUIET = 20_000; // silence after which we ask "still there?"
const PATIENCE = 8_000; // and how long the answer may take
const OPENING = 10_000; // a handshake that takes longer is dead

export class ResilientSocket {
  private link: Link = { state: 'idle' };
  private socket: WebSocket | undefined;
  private waitTimer: ReturnType<typeof setTimeout> | undefined;
  private quietTimer: ReturnType<typeof setTimeout> | undefined;
  // Another network: what was open before is dead, though nothing has said so yet.
  private readonly onOnline = () => {
    if (!this.on.ping) this.drop(0, 'network changed');
    this.nudge();
  };
  private readonly onVisible = () => document.visibilityState === 'visible' && this.nudge();

  constructor(private readonly on: SocketHandlers) {}

  start(): void {
    addEventListener('online', this.onOnline);
    document.addEventListener('visibilitychange', this.onVisible);
    this.happen('start');
  }

  /** Ends it; nothing more is reported. */
  finish(): void {
    removeEventListener('online', this.onOnline);
    document.removeEventListener('visibilitychange', this.onVisible);
    this.happen('finish');
  }

  greeted(): void {
    this.happen('greeted');
  }

  /** Connect now if waiting; if connected, make sure that it still is. */
  nudge(): void {
    if (this.link.state === 'open') this.probe(3000);
    this.happen('nudge');
  }

  /** Drops the present connection, as if the network had; used on protocol errors. */
  drop(code: number, reason: string): void {
    const socket = this.socket;
    if (socket) this.detach(socket, code, reason);
  }

  get open(): boolean {
    return this.link.state === 'open';
  }

  /** Whether it was sent. Nothing is kept for later. */
  send(data: ArrayBufferView<ArrayBuffer> | string): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(data);
    return true;
  }

  private happen(what: Happening): void {
    const [next, effects] = step(this.link, what, Math.random());
    const changed = next !== this.link;
    this.link = next;
    for (const effect of effects) this.perform(effect);
    if (changed) this.on.state(next, next.state === 'waiting' ? Date.now() + next.delay : undefined);
  }

  private perform(effect: Effect): void {
    switch (effect.do) {
      case 'connect':
        void this.connect();
        break;
      case 'wait':
        this.waitTimer = setTimeout(() => this.happen('timer'), effect.delay);
        break;
      case 'cancelWait':
        clearTimeout(this.waitTimer);
        break;
      case 'close': {
        const socket = this.socket;
        this.socket = undefined;
        clearTimeout(this.quietTimer);
        socket?.close(1000);
        break;
      }
    }
  }

  private async connect(): Promise<void> {
    let url: string;
    try {
      url = await this.on.url();
    } catch (error) {
      if (this.link.state !== 'connecting') return;
      await this.wasLost(false, 0, error instanceof Error ? error.message : '');
      return;
    }
    if (this.link.state !== 'connecting') return;
    const socket = new WebSocket(url, this.on.protocol);
    socket.binaryType = 'arraybuffer';
    this.socket = socket;
    const opening = setTimeout(() => this.detach(socket, 0, 'timeout'), OPENING);
    socket.onopen = () => clearTimeout(opening);
    socket.onmessage = (event: MessageEvent<ArrayBuffer | string>) => {
      if (this.socket !== socket) return;
      this.listen();
      this.on.message(event.data);
    };
    socket.onclose = (event) => {
      clearTimeout(opening);
      this.detach(socket, event.code, event.reason);
    };
  }

  private detach(socket: WebSocket, code: number, reason: string): void {
    if (this.socket !== socket) return;
    this.socket = undefined;
    clearTimeout(this.quietTimer);
    socket.close();
    void this.wasLost(this.link.state === 'open', code, reason);
  }

  private async wasLost(greeted: boolean, code: number, reason: string): Promise<void> {
    this.happen('lost'); // first show it, then find out why
    try {
      if (await this.on.lost(greeted, code, reason)) this.finish();
    } catch {
      // No answer: the network, most likely, so keep trying.
    }
  }

  private listen(): void {
    clearTimeout(this.quietTimer);
    if (this.on.ping) this.quietTimer = setTimeout(() => this.probe(PATIENCE), QUIET);
  }

  private probe(patience: number): void {
    const socket = this.socket;
    const ping = this.on.ping?.();
    if (!socket || !ping || !this.send(ping)) return;
    clearTimeout(this.quietTimer);
    this.quietTimer = setTimeout(() => this.detach(socket, 0, 'silent'), patience);
  }
}
