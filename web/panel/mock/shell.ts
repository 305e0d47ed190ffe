// A pretend shell with the real session semantics: a ring of output with stream offsets, many watchers,
// a window of 512 KiB past the last ack. It knows a handful of commands, enough to see a terminal work.
import type { WebSocket } from 'ws';

const RING = 512 * 1024;
const WINDOW = 512 * 1024;

interface Watcher {
  socket: WebSocket;
  sent: number;
  acked: number;
}

function hello(offset: number, lost: boolean): Buffer {
  const frame = Buffer.alloc(10);
  frame[0] = 0x14;
  frame.writeBigUInt64BE(BigInt(offset), 1);
  frame[9] = Number(lost);
  return frame;
}

const bold = (s: string) => `\x1b[1m${s}\x1b[0m`;

export class Shell {
  readonly createdAt = new Date().toISOString();
  exited = false;
  exitCode = 0;
  cols = 80;
  rows = 24;
  private ring = Buffer.alloc(0);
  private end = 0;
  private line = '';
  private watchers = new Set<Watcher>();

  constructor(
    readonly id: string,
    private readonly host: string,
    private readonly banner: string,
    private readonly onExit: () => void,
  ) {
    this.print(`\x1b[2m${this.banner}\x1b[0m\r\n`);
    this.prompt();
  }

  attach(socket: WebSocket, offset: number | undefined): void {
    const start = this.end - this.ring.length;
    const from = offset === undefined ? start : Math.min(this.end, Math.max(start, offset));
    socket.send(hello(from, offset === undefined ? start > 0 : from > offset));
    const watcher: Watcher = { socket, sent: from, acked: from };
    this.watchers.add(watcher);
    socket.on('close', () => this.watchers.delete(watcher));
    socket.on('message', (raw: Buffer) => this.frame(watcher, raw));
    this.feed(watcher);
    if (this.exited) this.sendExit(watcher);
  }

  get watched(): boolean {
    return this.watchers.size > 0;
  }

  dropAll(): void {
    for (const { socket } of this.watchers) socket.terminate();
  }

  end_(code: number): void {
    if (this.exited) return;
    this.exited = true;
    this.exitCode = code;
    for (const watcher of this.watchers) this.sendExit(watcher);
    this.onExit();
  }

  private sendExit({ socket }: Watcher): void {
    const frame = Buffer.alloc(5);
    frame[0] = 0x13;
    frame.writeInt32BE(this.exitCode, 1);
    socket.send(frame);
    socket.close(1000);
  }

  private frame(watcher: Watcher, raw: Buffer): void {
    switch (raw[0]) {
      case 0x01:
        for (const char of raw.subarray(1).toString('utf8')) this.key(char);
        break;
      case 0x02:
        this.cols = raw.readUInt16BE(1);
        this.rows = raw.readUInt16BE(3);
        break;
      case 0x03:
        watcher.acked = Math.max(watcher.acked, Number(raw.readBigUInt64BE(1)));
        this.feed(watcher);
        break;
      case 0x06:
        watcher.socket.send(Buffer.of(0x16));
        break;
    }
  }

  private feed(watcher: Watcher): void {
    const start = this.end - this.ring.length;
    if (watcher.sent < start) {
      // The ring ran past it: say where output goes on, and count the window from there.
      watcher.sent = watcher.acked = start;
      watcher.socket.send(hello(start, true));
    }
    while (watcher.sent < this.end && watcher.sent < watcher.acked + WINDOW) {
      const n = Math.min(32 * 1024, this.end - watcher.sent, watcher.acked + WINDOW - watcher.sent);
      const frame = Buffer.alloc(9 + n);
      frame[0] = 0x11;
      frame.writeBigUInt64BE(BigInt(watcher.sent), 1);
      this.ring.copy(frame, 9, watcher.sent - start, watcher.sent - start + n);
      watcher.socket.send(frame);
      watcher.sent += n;
    }
  }

  private print(text: string): void {
    const bytes = Buffer.from(text);
    this.end += bytes.length;
    this.ring = Buffer.concat([this.ring, bytes]).subarray(-RING);
    for (const watcher of this.watchers) this.feed(watcher);
  }

  private prompt(): void {
    this.print(`\x1b[36mroot@${this.host}\x1b[0m:\x1b[34m~\x1b[0m# `);
  }

  private key(char: string): void {
    if (this.exited) return;
    if (char === '\r') {
      this.print('\r\n');
      const line = this.line.trim();
      this.line = '';
      if (line.startsWith('seq')) this.run(line); // prompts by itself when done
      else {
        this.run(line);
        if (!this.exited) this.prompt();
      }
    } else if (char === '\x7f') {
      if (this.line) {
        this.line = this.line.slice(0, -1);
        this.print('\b \b');
      }
    } else if (char === '\x03') {
      this.line = '';
      this.print('^C\r\n');
      this.prompt();
    } else if (char === '\x04') {
      if (!this.line) this.end_(0);
    } else if (char >= ' ') {
      this.line += char;
      this.print(char);
    }
  }

  /** Prints as a program behind a PTY does: as fast as the slowest watcher acknowledges. */
  private count(from: number, to: number): void {
    if ([...this.watchers].every((watcher) => this.end - watcher.acked < WINDOW / 2)) {
      let out = '';
      for (; from <= to && out.length < 16_384; from++) out += `${from}\r\n`;
      this.print(out);
    }
    if (from <= to) {
      setTimeout(() => this.count(from, to), 1);
      return;
    }
    this.prompt();
  }

  private run(line: string): void {
    const [command = '', ...args] = line.split(/\s+/);
    switch (command) {
      case '':
        return;
      case 'ls':
        return this.print(['bin', 'dev', 'etc', 'home', 'proc', 'root', 'sys', 'tmp', 'usr', 'var'].map((d) => `\x1b[1;34m${d}\x1b[0m`).join('  ') + '\r\n');
      case 'seq':
        return this.count(1, Number(args[0] ?? 10));
      case 'echo':
        return this.print(`${args.join(' ')}\r\n`);
      case 'uname':
        return this.print('Linux box 6.18.0 #1 SMP x86_64 GNU/Linux\r\n');
      case 'size':
        return this.print(`${this.cols}x${this.rows}\r\n`);
      case 'osc52':
        return this.print(`\x1b]52;c;${Buffer.from(args.join(' ')).toString('base64')}\x07`);
      case 'show':
        this.print(`${bold('  PID   USER     %CPU  %MEM  COMMAND')}\r\n`);
        for (const row of ['    1   root      0.0   0.1  init', '   14   root      0.3   1.2  sh', '   27   root     12.5   4.8  python3 train.py']) this.print(`${row}\r\n`);
        this.print('\r\n\x1b[32m✓\x1b[0m 142 passed  \x1b[33m!\x1b[0m 2 slow  \x1b[31m✗\x1b[0m 0 failed   see https://example.org/report\r\n');
        for (let i = 0; i < 16; i++) this.print(`\x1b[48;5;${i}m    \x1b[0m`);
        return this.print('\r\n┌──────────────┬───────────┐\r\n│ 名称         │ 大小      │\r\n├──────────────┼───────────┤\r\n│ 数据.csv     │  1.2 MB   │\r\n└──────────────┴───────────┘\r\n');
      case 'exit':
        return this.end_(Number(args[0] ?? 0));
      default:
        return this.print(`sh: ${command}: not found\r\n`);
    }
  }
}
