// What is typed and pasted, on its way out. The server answers a ping once the session has taken all input
// before it; so by never having more than WINDOW bytes under way beyond the last answer, a huge paste waits
// here, where acks and resizes can overtake it, and not in the network in front of them.
import { inputFrames } from './frames.ts';

/** Most input bytes sent and not known to be taken. */
export const WINDOW = 128 * 1024;
/** Most bytes kept while there is no connection: a few commands, not a paste that would land elsewhere. */
export const KEPT = 4 * 1024;

export class InputWindow {
  private queue: Uint8Array<ArrayBuffer>[] = [];
  private queued = 0;
  private sent = 0;
  private pinged = false;
  private connected = false;

  constructor(private readonly out: { send(frame: Uint8Array<ArrayBuffer>): void; ping(): void }) {}

  /** Whether the session may be slow to take input, so that a late pong means nothing. */
  get busy(): boolean {
    return this.sent > 1024 || this.queued > 0;
  }

  /** Takes input. False: there is no connection and too much is waiting already, so it was dropped. */
  write(data: string | Uint8Array): boolean {
    const frames = inputFrames(data);
    const size = frames.reduce((sum, frame) => sum + frame.byteLength - 1, 0);
    if (!this.connected && this.queued + size > KEPT) return false;
    this.queue.push(...frames);
    this.queued += size;
    this.pump();
    return true;
  }

  connect(): void {
    this.connected = true;
    this.sent = 0;
    this.pinged = false;
    this.pump();
  }

  /** What was under way is not sent again: it may have arrived. The rest of a long paste is dropped. */
  disconnect(): void {
    this.connected = false;
    if (this.queued > KEPT) {
      this.queue = [];
      this.queued = 0;
    }
  }

  pong(): void {
    this.sent = 0;
    this.pinged = false;
    this.pump();
  }

  private pump(): void {
    while (this.connected && this.queue.length > 0 && this.sent < WINDOW) {
      const frame = this.queue.shift()!;
      this.queued -= frame.byteLength - 1;
      this.sent += frame.byteLength - 1;
      this.out.send(frame);
    }
    if (this.connected && this.sent >= WINDOW / 2 && !this.pinged) {
      this.pinged = true;
      this.out.ping();
    }
  }
}
