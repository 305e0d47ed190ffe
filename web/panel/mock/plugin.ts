// A pretend gateway inside the dev server, so that the panel can be worked on without one. It keeps to the
// real API and wire protocol, in memory. Never part of a build: only vite.config.ts loads it, when serving.
//
// Sign in as ada / correct-horse (an operator) or sign up. Images play roles: busybox starts at once,
// postgres pulls slowly, mongo waits in the queue, brainfuck fails. POST /mock/drop cuts every socket,
// /mock/away takes the node away or back,
// /mock/expire ends the access token, /mock/revoke the whole sign-in, /mock/down?ms=N refuses everything.
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Plugin } from 'vite';
import { WebSocketServer, type WebSocket } from 'ws';
import { Shell } from './shell.ts';

/* eslint-disable @typescript-eslint/no-explicit-any -- a mock of JSON */
type Json = Record<string, any>;

const mib = 1024 * 1024;
function image(id: number, name: string, title: string, logo: string, description: string, memory = 256): Json {
  return {
  id, name, title, titleZh: '', logo, description, descriptionZh: zh[name] ?? '', insecure: false, position: id * 10,
  source: name === 'busybox' ? 'busybox' : `docker.io/library/${name}:latest`,
  command: name === 'busybox' ? ['/bin/sh'] : null,
  memoryBytes: memory * mib, cpus: memory > 500 ? 2 : 1, pids: 256, diskBytes: 1024 * mib,
  capAdd: name === 'alpine' ? ['NET_RAW'] : [], memoryHighBytes: name === 'ubuntu' ? 192 * mib : 0, ioReadBps: 0, ioWriteBps: name === 'debian' ? 10 * mib : 0, ioReadIops: 0, ioWriteIops: name === 'debian' ? 100 : 0,
  netUpBits: 0, netDownBits: 0, netQuotaBytes: 100 * mib, blkQuotaBytes: 0, lifetimeSeconds: 4 * 3600, enabled: true,
  };
}

const zh: Record<string, string> = {
  busybox: '极小的 Linux，瞬间启动', ubuntu: '多数教程所用的发行版', debian: '稳定的通用操作系统', alpine: '小巧安全，基于 musl', python: 'Python 3，自带 pip',
  node: 'V8 上的 JavaScript，自带 npm', golang: 'Go 语言工具链', rust: 'Rust 工具链，自带 cargo', postgres: '先进的关系型数据库', redis: '内存数据库', mongo: '文档数据库',
  deno: '安全的 JavaScript 与 TypeScript 运行时', ruby: 'Ruby，自带 gem 与 irb', haskell: 'GHC 与 cabal', caddy: '自动 HTTPS 的网站服务器', mariadb: '兼容 MySQL 的关系型数据库', brainfuck: '八个指令足矣',
};

const images: Json[] = [
  image(1, 'busybox', 'BusyBox', 'busybox', 'The smallest Linux: a hundred commands in one file', 64),
  image(2, 'ubuntu', 'Ubuntu', 'ubuntu', 'The distribution most tutorials are written for'),
  image(3, 'debian', 'Debian', 'debian', 'The universal, stable operating system'),
  image(4, 'alpine', 'Alpine', 'alpinelinux', 'Small, simple, secure; built on musl', 128),
  image(5, 'python', 'Python', 'python', 'Python 3 with pip'),
  image(6, 'node', 'Node.js', 'nodedotjs', 'JavaScript on V8, with npm', 512),
  image(7, 'golang', 'Go', 'go', 'The Go tool chain', 1024),
  image(8, 'rust', 'Rust', 'rust', 'rustc and cargo', 1024),
  image(9, 'postgres', 'PostgreSQL', 'postgresql', 'The advanced relational database', 512),
  image(10, 'redis', 'Redis', 'redis', 'An in-memory data store'),
  image(11, 'mongo', 'MongoDB', 'mongodb', 'A document database', 512),
  image(12, 'deno', 'Deno', 'deno', 'A secure runtime for JavaScript and TypeScript'),
  image(13, 'ruby', 'Ruby', 'ruby', "A programmer's best friend"),
  image(14, 'haskell', 'Haskell', 'haskell', 'GHC and cabal', 1024),
  image(15, 'caddy', 'Caddy', 'caddy', 'A web server with automatic HTTPS'),
  image(16, 'mariadb', 'MariaDB', 'mariadb', 'A relational database, MySQL compatible', 512),
  image(17, 'brainfuck', 'Brainfuck', 'brainfuck', 'Eight instructions are enough', 64),
];

interface Env { row: Json; owner: string; history: Json[]; shells: Map<string, Shell>; load: Json }

class Mock {
  users: Json[] = [{ id: 1, username: 'ada', email: 'ada@example.org', admin: true, createdAt: '2026-03-02T09:00:00Z' }, { id: 2, username: 'linus', admin: false, createdAt: '2026-09-14T12:30:00Z' }];
  passwords = new Map([['ada', 'correct-horse'], ['linus', 'correct-horse']]);
  keys: Json[] = [{ id: 1, name: 'Laptop', fingerprint: 'SHA256:tJq9XbqkA3nY5rM0hU1kQ8qWmB2vZc7dFgHjKlPoIuY', createdAt: '2026-10-01T08:00:00Z' }];
  envs = new Map<string, Env>();
  feeds = new Set<{ socket: WebSocket; user: string }>();
  access = new Map<string, { user: string; until: number }>();
  refresh = new Map<string, string>();
  downUntil = 0;
  counter = 0;
  requireCode = process.env.MOCK_REQUIRE_CODE === '1';
  readonly sockets = new WebSocketServer({ noServer: true });

  constructor() {
    const past = (id: string, name: string, state: string, hours: number, reason: string, reasonCode: string, reasonValues: Json = {}) => {
      const img = images.find((i) => i.name === name)!;
      const started = new Date(Date.now() - hours * 3.6e6);
      const row = { ...this.row(id, img), state, reason, reasonCode, reasonValues, createdAt: started.toISOString(), startedAt: started.toISOString(), endedAt: new Date(started.getTime() + 47 * 60e3).toISOString() };
      this.envs.set(id, { row, owner: 'ada', history: [{ at: row.createdAt, state: 'queued' }, { at: row.createdAt, state: 'creating' }, { at: row.createdAt, state: 'running' }, { at: row.endedAt, state, reason, reasonCode, reasonValues }], shells: new Map(), load: {} });
    };
    past('eold1', 'python', 'deleted', 5, 'deleted by its owner', 'deleted_by_owner');
    past('eold2', 'redis', 'overstep', 29, 'network traffic passed its quota of 100.0 MiB', 'net_quota', { quota: '100.0 MiB' });
    past('eold3', 'ubuntu', 'deleted', 53, 'lifetime', 'lifetime');
    setInterval(() => this.stats(), 1000).unref();
  }

  row(id: string, img: Json): Json {
    return {
      id, name: `${img.name}-${id.slice(1, 5)}`, image: img.name, title: img.title, titleZh: '', logo: img.logo, state: 'queued', stage: '', percent: 0, reason: '', reasonCode: '', reasonValues: {}, hint: '',
      node: '', nodeOnline: true, address: '', latestDeadline: new Date(Date.now() + 24 * 3600e3).toISOString(), queuePosition: 0, createdAt: new Date().toISOString(), startedAt: null, endedAt: null,
      deadline: new Date(Date.now() + img.lifetimeSeconds * 1000).toISOString(), idleTimeoutSeconds: 1800,
      ...Object.fromEntries(Object.entries(img).filter(([key]) => /Bytes$|Bits$|^io|^cpus$|^pids$|^capAdd$/.test(key))), timings: {},
    };
  }

  push(message: Json, owner: string): void {
    for (const feed of this.feeds) if (feed.user === owner) feed.socket.send(JSON.stringify(message));
  }

  set(env: Env, change: Json): void {
    const before = env.row.state;
    Object.assign(env.row, change);
    if (env.row.state !== before) env.history.push({ at: new Date().toISOString(), state: env.row.state, reason: env.row.reason, reasonCode: env.row.reasonCode, reasonValues: env.row.reasonValues });
    this.push({ type: 'environment', environment: env.row }, env.owner);
  }

  stats(): void {
    for (const env of this.envs.values()) {
      if (env.row.state !== 'running') continue;
      const load = env.load;
      load.cpuPercent = Math.max(0.2, Math.min(98, (load.cpuPercent ?? 6) + (Math.random() - 0.48) * 14));
      load.memoryBytes = Math.max(6 * mib, Math.min(env.row.memoryBytes * 0.9, (load.memoryBytes ?? 18 * mib) + (Math.random() - 0.45) * 5 * mib));
      load.memoryLimit = env.row.memoryBytes;
      load.rxBytes = Math.round((load.rxBytes ?? 2 * mib) + Math.random() ** 3 * 300e3);
      load.txBytes = Math.round((load.txBytes ?? 0.3 * mib) + Math.random() ** 3 * 40e3);
      load.pids = 3;
      this.push({ type: 'stats', environment: env.row.id, stats: load }, env.owner);
    }
  }

  begin(env: Env): void {
    const name = env.row.image;
    const at = (ms: number, change: Json) => setTimeout(() => env.row.state !== 'deleted' && this.set(env, change), ms);
    const run = (ms: number) => {
      at(ms, { reason: '', reasonCode: '', reasonValues: {}, hint: '', state: 'creating', stage: 'root file system', node: 'node-1', queuePosition: null });
      at(ms + 350, { state: 'running', stage: '', percent: 100, address: '10.64.0.7', startedAt: new Date().toISOString(), timings: { rootfs: 9000, network: 4000, init: 6000, total: 21000 } });
    };
    if (name === 'postgres') {
      for (let p = 0; p <= 100; p += 4) at(200 + p * 50, { state: 'pulling', stage: `layer ${Math.floor(p / 26) + 1} of 4`, percent: p, node: 'node-1' });
      run(5400);
    } else if (name === 'mongo') {
      at(10, { queuePosition: 2, reason: 'no node has room: needs 512 MiB of memory, at most 210 MiB are free', reasonCode: 'no_memory', reasonValues: { needed: '512 MiB', free: '210 MiB' }, hint: 'It starts by itself as soon as a node has room; you may close this page.' });
      at(6000, { queuePosition: 1 });
      at(9000, { queuePosition: 0 });
      run(12000);
    } else if (name === 'brainfuck') {
      at(300, { state: 'pulling', stage: 'resolving', percent: 0 });
      at(900, { state: 'failed', reason: 'docker.io/library/brainfuck:latest: the registry says “manifest unknown”', hint: 'Check the image’s source under Admin → Images, or choose another image.', endedAt: new Date().toISOString() });
    } else run(150);
  }

  who(req: IncomingMessage): string | undefined {
    const token = /learnos_access=([^;]+)/.exec(req.headers.cookie ?? '')?.[1];
    const entry = token ? this.access.get(token) : undefined;
    return entry && entry.until > Date.now() ? entry.user : undefined;
  }

  session(res: ServerResponse, username: string, status: number): void {
    const token = `a${++this.counter}${Math.random()}`;
    const refresh = `r${this.counter}${Math.random()}`;
    this.access.set(token, { user: username, until: Date.now() + 600e3 });
    this.refresh.set(refresh, username);
    res.setHeader('Set-Cookie', [`learnos_access=${token}; HttpOnly; SameSite=Strict; Path=/`, `learnos_refresh=${refresh}; HttpOnly; SameSite=Strict; Path=/api/v1/auth`]);
    this.json(res, status, { accessToken: token, refreshToken: refresh, expiresIn: 600, user: this.users.find((u) => u.username === username) });
  }

  json(res: ServerResponse, status: number, body?: unknown): void {
    res.statusCode = status;
    if (body === undefined) return void res.end();
    res.setHeader('Content-Type', 'application/json');
    res.end(JSON.stringify(body));
  }

  fail(res: ServerResponse, status: number, code: string, message: string, hint: string): void {
    this.json(res, status, { error: { code, message, hint } });
  }

  async handle(req: IncomingMessage, res: ServerResponse): Promise<boolean> {
    const url = new URL(req.url ?? '/', 'http://mock');
    if (url.pathname.startsWith('/mock/')) return this.control(url, res);
    if (!url.pathname.startsWith('/api/v1/')) return false;
    if (Date.now() < this.downUntil) {
      req.socket.destroy();
      return true;
    }
    const chunks: Buffer[] = [];
    for await (const chunk of req) chunks.push(chunk as Buffer);
    const body: Json = chunks.length ? JSON.parse(Buffer.concat(chunks).toString()) : {};
    await new Promise((resolve) => setTimeout(resolve, Number(process.env.MOCK_DELAY ?? 30)));
    const parts = url.pathname.slice('/api/v1/'.length).split('/');
    this.route(req, res, url, `${req.method} ${parts[0]}`, parts, body);
    return true;
  }

  control(url: URL, res: ServerResponse): boolean {
    if (url.pathname === '/mock/drop') for (const client of this.sockets.clients) client.terminate();
    if (url.pathname === '/mock/expire') for (const entry of this.access.values()) entry.until = 0;
    if (url.pathname === '/mock/revoke') {
      this.access.clear();
      this.refresh.clear();
    }
    if (url.pathname === '/mock/code') this.requireCode = !this.requireCode;
    if (url.pathname === '/mock/away') {
      for (const env of this.envs.values()) {
        this.set(env, { nodeOnline: !env.row.nodeOnline });
        for (const shell of env.shells.values()) shell.dropAll();
      }
    }
    if (url.pathname === '/mock/deadline') for (const env of this.envs.values()) this.set(env, { deadline: new Date(Date.now() + Number(url.searchParams.get('s')) * 1000).toISOString() });
    if (url.pathname === '/mock/down') {
      this.downUntil = Date.now() + Number(url.searchParams.get('ms'));
      for (const client of this.sockets.clients) client.terminate();
    }
    this.json(res, 204);
    return true;
  }

  route(req: IncomingMessage, res: ServerResponse, url: URL, what: string, parts: string[], body: Json): void {
    const [, second, third, fourth] = parts;
    if (what === 'GET config') return this.json(res, 200, { registration: true, requireCode: this.requireCode, version: '0.1.0', sshAddr: '127.0.0.1:8022', maxEnvironments: 3 });
    if (parts[0] === 'auth') {
      if (second === 'login') {
        if (this.passwords.get(body.username) !== body.password) return this.fail(res, 401, 'wrong_credentials', 'The username or the password is wrong', 'Check both; passwords are case-sensitive.');
        return this.session(res, body.username, 200);
      }
      if (second === 'register') {
        if (this.passwords.has(body.username)) return this.fail(res, 409, 'username_taken', `The username ${body.username} is taken`, 'Choose another one, or sign in if it is yours.');
        if (this.requireCode && body.code !== '123456') return this.fail(res, 400, 'code_invalid', 'That code is wrong or too old', 'Ask for a new one; codes last ten minutes.');
        this.users.push({ id: this.users.length + 1, username: body.username, email: body.email, admin: false, createdAt: new Date().toISOString() });
        this.passwords.set(body.username, body.password);
        return this.session(res, body.username, 201);
      }
      if (second === 'code') return this.json(res, 202);
      if (second === 'logout') {
        res.setHeader('Set-Cookie', ['learnos_access=; Max-Age=0; Path=/', 'learnos_refresh=; Max-Age=0; Path=/api/v1/auth']);
        return this.json(res, 204);
      }
      if (second === 'refresh') {
        const token = /learnos_refresh=([^;]+)/.exec(req.headers.cookie ?? '')?.[1] ?? '';
        const user = this.refresh.get(token);
        if (!user) return this.fail(res, 401, 'refresh_invalid', 'The sign-in has ended', 'Sign in again.');
        this.refresh.delete(token);
        return this.session(res, user, 200);
      }
    }
    const user = this.who(req);
    if (!user) return this.fail(res, 401, 'unauthenticated', 'You are not signed in', 'Sign in first.');
    const me = this.users.find((u) => u.username === user)!;
    const mine = (id = '') => { const env = this.envs.get(id); return env?.owner === user ? env : undefined; };
    const none = () => this.fail(res, 404, 'not_found', 'There is no such environment', 'It may have been deleted.');
    switch (what) {
      case 'GET me': return second === 'keys' ? this.json(res, 200, this.keys) : this.json(res, 200, me);
      case 'PATCH me':
        if (body.currentPassword !== this.passwords.get(user)) return this.fail(res, 403, 'wrong_password', 'The current password is wrong', 'Type the password you signed in with.');
        if (body.password) this.passwords.set(user, body.password);
        return this.json(res, 200, me);
      case 'POST me': {
        const key = { id: ++this.counter + 10, name: body.name, fingerprint: `SHA256:${Buffer.from(String(body.key)).toString('base64').slice(8, 51)}`, createdAt: new Date().toISOString() };
        this.keys.push(key);
        return this.json(res, 201, key);
      }
      case 'DELETE me': this.keys = this.keys.filter((k) => String(k.id) !== third); return this.json(res, 204);
      case 'GET images': return this.json(res, 200, images.filter((i) => i.enabled || me.admin));
      case 'POST images': { const made = { ...body, id: ++this.counter + 100 }; images.push(made); return this.json(res, 201, made); }
      case 'PATCH images': { const found = images.find((i) => String(i.id) === second); if (!found) return none(); Object.assign(found, body); return this.json(res, 200, found); }
      case 'DELETE images': images.splice(images.findIndex((i) => String(i.id) === second), 1); return this.json(res, 204);
      case 'GET nodes': return this.json(res, 200, [{ name: 'node-1', version: '0.1.0', address: '192.0.2.10', freeMemory: 5.1 * 1024 * mib, totalMemory: 8192 * mib, cpus: 4, environments: 7, connected: true, diskFree: 61e9, diskTotal: 160e9, updatedAt: new Date().toISOString() }, { name: 'node-2', version: '0.1.0', address: '192.0.2.11', freeMemory: 210 * mib, totalMemory: 4096 * mib, cpus: 2, environments: 12, connected: false, diskFree: 9e9, diskTotal: 80e9, updatedAt: new Date(Date.now() - 9000).toISOString() }]);
      case 'GET users': return this.json(res, 200, this.users.map((u) => ({ disabled: false, environments: 0, lastLoginAt: null, ...u })));
      case 'PATCH users': { const found = this.users.find((u) => String(u.id) === second); if (!found) return none(); Object.assign(found, body); return this.json(res, 200, found); }
      case 'GET audit': return this.json(res, 200, [{ id: 3, at: new Date(Date.now() - 60e3).toISOString(), username: 'ada', action: 'environment.create', target: 'busybox-x1k2', remoteAddr: '203.0.113.7' }, { id: 2, at: new Date(Date.now() - 3600e3).toISOString(), username: 'ada', action: 'auth.login', target: '', remoteAddr: '203.0.113.7' }, { id: 1, at: new Date(Date.now() - 7200e3).toISOString(), username: 'linus', action: 'auth.login_failed', target: '', detail: 'wrong password', remoteAddr: '198.51.100.23' }]);
      case 'POST environments':
        if (!second) {
          const live = [...this.envs.values()].filter((e) => e.owner === user && !['deleted', 'overstep', 'failed'].includes(e.row.state));
          if (live.length >= 3) return this.fail(res, 409, 'allowance', 'You already have 3 environments, the most this server allows', 'Delete one you no longer need, then start this one again.');
          const img = images.find((i) => i.name === body.image);
          if (!img) return this.fail(res, 404, 'no_such_image', `There is no image ${body.image}`, 'Choose one from the list.');
          const id = `e${Math.random().toString(36).slice(2, 12)}${Math.random().toString(36).slice(2, 12)}`;
          const env: Env = { row: this.row(id, img), owner: user, history: [{ at: new Date().toISOString(), state: 'queued' }], shells: new Map(), load: {} };
          this.envs.set(id, env);
          this.json(res, 202, env.row);
          this.push({ type: 'environment', environment: env.row }, user);
          return this.begin(env);
        }
        return this.act(res, mine(second), third, body, none);
      case 'GET environments': {
        if (!second) return this.json(res, 200, [...this.envs.values()].filter((e) => e.owner === user && (url.searchParams.get('all') === 'history' || !['deleted', 'overstep'].includes(e.row.state))).map((e) => e.row));
        const env = mine(second);
        if (!env) return none();
        if (third === 'history') return this.json(res, 200, env.history);
        if (third === 'sessions') return this.json(res, 200, [...env.shells.values()].map((s) => ({ id: s.id, args: ['/bin/sh'], tty: true, exited: s.exited, exitCode: s.exitCode, createdAt: s.createdAt })));
        return this.json(res, 200, env.row);
      }
      case 'DELETE environments': {
        const env = mine(second);
        if (!env) return none();
        if (third === 'sessions') { env.shells.get(fourth ?? '')?.end_(129); env.shells.delete(fourth ?? ''); return this.json(res, 204); }
        this.json(res, 202, env.row);
        this.set(env, { state: 'stopping' });
        setTimeout(() => { for (const shell of env.shells.values()) shell.end_(137); this.set(env, { state: 'deleted', reason: 'deleted by its owner', reasonCode: 'deleted_by_owner', reasonValues: {}, endedAt: new Date().toISOString() }); }, 600);
        return;
      }
    }
    this.fail(res, 404, 'not_found', 'There is no such address', '');
  }

  act(res: ServerResponse, env: Env | undefined, what: string | undefined, body: Json, none: () => void): void {
    if (!env) return none();
    if (what === 'extend') {
      this.set(env, { deadline: new Date(Math.min(Date.parse(env.row.deadline) + body.seconds * 1000, Date.now() + 24 * 3600e3)).toISOString() });
      return this.json(res, 200, env.row);
    }
    if (what === 'retry') {
      this.set(env, { state: 'queued', reason: '', hint: '', endedAt: null });
      this.json(res, 202, env.row);
      return this.begin(env);
    }
    if (what === 'sessions') {
      const id = `s${++this.counter}`;
      const shell = new Shell(id, env.row.image, `Learnos · ${env.row.title} · ends ${env.row.deadline.slice(11, 16)} UTC`, () => undefined);
      env.shells.set(id, shell);
      return this.json(res, 201, { id });
    }
    none();
  }

  upgrade(req: IncomingMessage, socket: Duplex, head: Buffer): void {
    const url = new URL(req.url ?? '/', 'http://mock');
    if (!url.pathname.startsWith('/api/v1/')) return;
    const refuse = (status: string) => { socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\n\r\n`); };
    if (Date.now() < this.downUntil) return void socket.destroy();
    const user = this.who(req);
    if (!user) return refuse('401 Unauthorized');
    const match = /^\/api\/v1\/environments\/([^/]+)\/sessions\/([^/]+)\/attach$/.exec(url.pathname);
    if (url.pathname === '/api/v1/events') {
      return this.sockets.handleUpgrade(req, socket, head, (ws) => {
        const feed = { socket: ws, user };
        const mine = [...this.envs.values()].filter((env) => env.owner === user && !['deleted', 'overstep'].includes(env.row.state)).map((env) => env.row);
        ws.send(JSON.stringify({ type: 'hello', environments: mine.map((row) => row.id) }));
        for (const row of mine) ws.send(JSON.stringify({ type: 'environment', environment: row }));
        this.feeds.add(feed);
        ws.on('close', () => this.feeds.delete(feed));
      });
    }
    const env = match ? this.envs.get(match[1]!) : undefined;
    if (env?.owner !== user) return refuse('404 Not Found');
    const shell = env.shells.get(match?.[2] ?? '');
    const offset = url.searchParams.get('offset');
    this.sockets.handleUpgrade(req, socket, head, (ws) => {
      if (!env.row.nodeOnline) ws.close(1013, JSON.stringify({ code: 'node_offline', hint: 'Its node is away; the shell goes on there and comes back with it.' }));
      else if (!shell) ws.close(4404, JSON.stringify({ code: 'not_found', hint: 'Start a new terminal.' }));
      else shell.attach(ws, offset === null ? undefined : Number(offset));
    });
  }
}

export function mockApi(): Plugin {
  const mock = new Mock();
  const middleware = (req: IncomingMessage, res: ServerResponse, next: (error?: unknown) => void) => {
    // As the real server sends it, so that what it forbids is noticed here first.
    if (process.env.MOCK_CSP) res.setHeader('Content-Security-Policy', "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'");
    mock.handle(req, res).then((done) => { if (!done) next(); }, next);
  };
  return {
    name: 'learnos:mock',
    configureServer(server) {
      server.middlewares.use(middleware);
      server.httpServer?.on('upgrade', (req, socket, head) => mock.upgrade(req, socket, head));
    },
    configurePreviewServer(server) {
      server.middlewares.use(middleware);
      server.httpServer.on('upgrade', (req, socket, head) => mock.upgrade(req, socket, head));
    },
  };
}
