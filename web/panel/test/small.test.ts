import fc from 'fast-check';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import type { Image, Rations } from '../src/lib/api/types.ts';
import { bytes, countdown, duration } from '../src/lib/format.ts';
import { describe as describeImage, search } from '../src/lib/images.ts';
import { dict } from '../src/lib/i18n/dict.ts';
import type { t } from '../src/lib/i18n/i18n.svelte.ts';
import { rations } from '../src/lib/rations.ts';
import { sshCommand } from '../src/lib/ssh.ts';
import { arrow, modify } from '../src/lib/term/keys.ts';
import * as check from '../src/lib/validate.ts';

describe('figures', () => {
  it('read as people read them', () => {
    expect([0, 999, 1024, 1536, 268435456, 1024 ** 3, 5.5 * 1024 ** 3].map(bytes)).toEqual(['0 B', '999 B', '1 KiB', '1.5 KiB', '256 MiB', '1 GiB', '5.5 GiB']);
    expect([0, 59, 60, 5400, 14400, 90000].map((s) => duration(s, 'en'))).toEqual(['0 s', '59 s', '1 min', '1 h 30 min', '4 h', '1 d 1 h']);
    expect(duration(5400, 'zh')).toBe('1 小时 30 分钟');
    expect([-5, 0, 42_000, 3_599_000, 14_352_000].map(countdown)).toEqual(['0:00', '0:00', '0:42', '59:59', '3:59:12']);
  });
});

describe('rations', () => {
  const say = ((key: keyof typeof dict, values?: Record<string, string>) => dict[key].en.replace(/\{(\w+)\}/g, (_, name: string) => String(values?.[name]))) as typeof t;
  const none: Rations = {
    memoryBytes: 268435456, memoryHighBytes: 0, cpus: 0.5, pids: 64, diskBytes: 0, netUpBits: 0, netDownBits: 0,
    ioReadBps: 0, ioWriteBps: 0, ioReadIops: 0, ioWriteIops: 0, netQuotaBytes: 0, blkQuotaBytes: 0, capAdd: [],
  };

  it('say what is limited, and only that', () => {
    expect(rations(none, say)).toEqual(['256 MiB', '0.5 CPU']);
    expect(rations({ ...none, memoryHighBytes: 134217728, diskBytes: 2 ** 31, ioReadBps: 4096, ioWriteBps: 4096, ioWriteIops: 40, netUpBits: 8e6, netDownBits: 16e6, capAdd: ['NET_RAW'] }, say)).toEqual([
      '256 MiB', 'slower from 128 MiB', '0.5 CPU', '2 GiB disk', 'disk 4 KiB/s', 'disk ↑ 40 per second', 'net ↓ 16 Mbit/s ↑ 8 Mbit/s', 'raw packets',
    ]);
  });
});

describe('what people type', () => {
  it('follows the gateway’s rules', () => {
    for (const good of ['ada', 'a-b_c', 'abc123', 'a'.repeat(32)]) expect(check.username(good), good).toBeUndefined();
    for (const bad of ['', 'ab', 'Ada', '1ab', '-ab', 'a b', 'añb', 'a'.repeat(33)]) expect(check.username(bad), bad).toBeDefined();
    fc.assert(fc.property(fc.string(), (s) => void expect(check.username(s) === undefined).toBe(/^[a-z][a-z0-9_-]{2,31}$/.test(s))));
    expect(check.password('1234567')).toBeDefined();
    expect(check.password('12345678')).toBeUndefined();
    expect(check.email('', false)).toBeUndefined();
    expect(check.email('', true)).toBe('auth.emailNeeded');
    expect(check.email('ada@example.org', true)).toBeUndefined();
    const key = `ssh-ed25519 ${'A'.repeat(68)} ada@laptop`;
    expect(check.publicKey(key)).toBeUndefined();
    expect(check.publicKey('-----BEGIN OPENSSH PRIVATE KEY-----')).toBe('account.keyPrivate');
    expect(check.publicKey('hello')).toBe('account.keyBad');
  });
});

describe('ssh commands', () => {
  it('name a host that can be reached', () => {
    expect(sshCommand('127.0.0.1:8022', 'learn.example', 'ada')).toBe('ssh -p 8022 ada@learn.example');
    expect(sshCommand(':8022', 'localhost', 'ada', 'busybox')).toBe('ssh -p 8022 ada+busybox@localhost');
    expect(sshCommand('[::]:22', 'learn.example', 'ada')).toBe('ssh ada@learn.example');
    expect(sshCommand('ssh.example:2222', 'learn.example', 'ada')).toBe('ssh -p 2222 ada@ssh.example');
    expect(sshCommand('', 'x', 'ada')).toBeUndefined();
  });
});

describe('on-screen keys', () => {
  it('send what a terminal expects', () => {
    expect(modify('c', { ctrl: true, alt: false })).toBe('\x03');
    expect(modify('[', { ctrl: true, alt: false })).toBe('\x1b');
    expect(modify(' ', { ctrl: true, alt: false })).toBe('\x00');
    expect(modify('x', { ctrl: false, alt: true })).toBe('\x1bx');
    expect(modify('pasted', { ctrl: true, alt: true })).toBe('pasted');
    expect(arrow('up', { ctrl: false, alt: false }, false)).toBe('\x1b[A');
    expect(arrow('up', { ctrl: false, alt: false }, true)).toBe('\x1bOA');
    expect(arrow('left', { ctrl: true, alt: false }, true)).toBe('\x1b[1;5D');
  });
});

describe('finding images', () => {
  const image = (name: string, title: string, description: string, descriptionZh = '') => ({ name, title, description, descriptionZh }) as Image;
  const all = [image('mongo', 'MongoDB', 'A document database', '文档型数据库'), image('go', 'Go', 'The Go tool chain'), image('redis', 'Redis', 'written in C, not Go', '内存数据库')];

  it('puts the closest first', () => {
    expect(search(all, 'go').map((i) => i.name)).toEqual(['go', 'mongo', 'redis']);
    expect(search(all, 'document mongo').map((i) => i.name)).toEqual(['mongo']);
    expect(search(all, '数据库').map((i) => i.name)).toContain('redis');
    expect(search(all, 'zzz')).toEqual([]);
    expect(search(all, '  ')).toHaveLength(3);
    expect(describeImage(all[0]!, 'zh')).toBe('文档型数据库');
    expect(describeImage(all[1]!, 'zh')).toBe('The Go tool chain');
  });
});

describe('addresses', () => {
  let router: typeof import('../src/lib/router.svelte.ts');
  beforeAll(async () => {
    vi.stubGlobal('location', { pathname: '/' });
    vi.stubGlobal('addEventListener', () => undefined);
    router = await import('../src/lib/router.svelte.ts');
  });

  it('name pages, and come back as they were made', () => {
    expect(router.parse('/')).toEqual({ page: 'gallery' });
    expect(router.parse('/admin')).toEqual({ page: 'admin', part: 'images' });
    expect(router.parse('/admin/nope')).toEqual({ page: 'notFound' });
    expect(router.parse('/t')).toEqual({ page: 'notFound' });
    fc.assert(
      fc.property(fc.stringMatching(/^[a-z0-9][a-z0-9-]{0,62}$/), fc.option(fc.stringMatching(/^[a-z0-9-]{1,20}$/)), (env, session) => {
        expect(router.parse(router.paths.workspace(env, session ?? undefined))).toEqual({ page: 'workspace', env, session: session ?? undefined });
      }),
    );
    fc.assert(fc.property(fc.string(), (s) => void expect(router.parse(s)).toHaveProperty('page')));
  });

  it('never lead out of the panel after signing in', () => {
    for (const bad of ['//evil.example', '/\\evil.example', 'https://evil.example', 'javascript:alert(1)', '', null, '/signin?next=/signin']) expect(router.safeNext(bad)).toBe('/');
    expect(router.safeNext('/t/e1/s2')).toBe('/t/e1/s2');
  });
});
