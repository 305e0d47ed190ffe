// Where we are in a session's output, and how fast the terminal may be fed.
//
// Three positions in one byte stream, each at most the one before:
//   received   the end of what arrived, and where a reconnect resumes
//   consumed   the end of what the terminal has parsed
//   acked      the end of what the server was told is consumed
// The server stops 512 KiB past `acked`. The terminal is never handed more than HIGH_WATER unparsed bytes,
// so its own queue (which drops silently when full) stays short whatever the server does.

/** Most bytes the terminal may hold unparsed. */
export const HIGH_WATER = 384 * 1024;
/** Acknowledge at the latest after this many consumed bytes; a timer covers the quiet rest. */
export const ACK_EVERY = 64 * 1024;

export interface Sink {
  /** Hands bytes to the terminal; `done` runs once they are parsed. */
  write(data: Uint8Array, done: () => void): void;
  /** Tells the server about `offset`. */
  ack(offset: number): void;
  /** Asks for `flushAck` to be called soon. Called at most once until it is. */
  scheduleAck(): void;
}

export class Flow {
  received: number | undefined;
  consumed = 0;
  private acked = 0;
  /** The end of what this connection sent: acknowledging more is a protocol error. */
  private seen = 0;
  private inTerminal = 0;
  private ackScheduled = false;
  private readonly queue: Uint8Array[] = [];
  private queued = 0;

  constructor(private readonly sink: Sink) {}

  /** The offset to attach with, or undefined for "from the start of the server's ring". */
  get resumeAt(): number | undefined {
    return this.received;
  }

  /** Bytes that arrived and are not parsed yet. */
  get pending(): number {
    return this.inTerminal + this.queued;
  }

  /**
   * A connection begins at `offset`, or goes on there after the server dropped output. Returns how many bytes
   * are lost; 0 on a seamless resume.
   */
  begin(offset: number): number {
    this.seen = offset;
    if (this.received === undefined) {
      this.received = this.consumed = this.acked = offset;
      return 0;
    }
    const gap = Math.max(0, offset - this.received);
    if (gap > 0) this.received = offset;
    // A new connection counts from its own start. If the server went further back than it had to, it must
    // learn soon that we are ahead, or it would wait for us at the end of its window.
    this.acked = Math.min(offset, this.received);
    return gap;
  }

  /** Takes output; bytes already received are dropped. Returns the bytes missing in front of it (a gap). */
  output(offset: number, data: Uint8Array): number {
    if (this.received === undefined) this.begin(offset);
    const received = this.received!;
    const end = offset + data.byteLength;
    this.seen = end;
    if (end <= received) {
      this.maybeAck();
      return 0;
    }
    const gap = Math.max(0, offset - received);
    const fresh = offset < received ? data.subarray(received - offset) : data;
    this.received = end;
    this.queue.push(fresh);
    this.queued += fresh.byteLength;
    this.pump();
    return gap;
  }

  /** Sends what has not been acknowledged yet. */
  flushAck(): void {
    this.ackScheduled = false;
    if (this.ackable > this.acked) {
      this.acked = this.ackable;
      this.sink.ack(this.acked);
    }
  }

  private get ackable(): number {
    return Math.min(this.consumed, this.seen);
  }

  private pump(): void {
    while (this.queue.length > 0 && this.inTerminal < HIGH_WATER) {
      const next = this.queue[0]!;
      const room = HIGH_WATER - this.inTerminal;
      const part = next.byteLength > room ? next.subarray(0, room) : next;
      if (part === next) this.queue.shift();
      else this.queue[0] = next.subarray(room);
      this.queued -= part.byteLength;
      this.inTerminal += part.byteLength;
      this.sink.write(part, () => this.parsed(part.byteLength));
    }
  }

  private parsed(length: number): void {
    this.inTerminal -= length;
    // Counted back from the end, so that bytes skipped in a gap count as consumed.
    this.consumed = this.received! - this.pending;
    this.maybeAck();
    this.pump();
  }

  private maybeAck(): void {
    const due = this.ackable - this.acked;
    if (due >= ACK_EVERY) this.flushAck();
    else if (due > 0 && !this.ackScheduled) {
      this.ackScheduled = true;
      this.sink.scheduleAck();
    }
  }
}
