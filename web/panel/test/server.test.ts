import { describe, expect, it } from 'vitest';
import zh from '../../words/zh.json';
import { closeHintIn, hintIn, problemIn, reasonIn } from '../src/lib/i18n/server.ts';

// That every code of the gateway is in zh.json is held by web/words' own test, which knows the gateway's sources.
describe('what the server says', () => {
  const error = (code: string) => ({ code, message: 'It said so.', hint: 'Do this.', field: 'name' });

  it('is said in the page’s language by its code', () => {
    for (const code of Object.keys(zh.problems)) {
      const { message, hint } = problemIn('zh', error(code));
      expect(message + hint, code).toMatch(/[\u4e00-\u9fff]/);
      expect(message + hint, code).not.toMatch(/[{}]/);
      expect(problemIn('en', error(code))).toEqual({ message: 'It said so.', hint: 'Do this.' });
    }
    expect(problemIn('zh', error('invalid_field')).message).toBe('“name”的值不符合要求：It said so.');
  });

  it('stays English when its code is not known here', () => {
    for (const code of ['of_tomorrow', 'constructor', '']) expect(problemIn('zh', error(code))).toEqual({ message: 'It said so.', hint: 'Do this.' });
  });

  it('gives reasons with their values', () => {
    const full = { reason: 'no node has room: needs 512 MiB of memory, at most 210 MiB are free', reasonCode: 'no_memory', reasonValues: { needed: '512 MiB', free: '210 MiB' } };
    expect(reasonIn('zh', full)).toBe('没有节点有足够内存：需要 512 MiB，空闲最多的只有 210 MiB');
    expect(reasonIn('en', full)).toBe('No node has room: needs 512 MiB of memory, at most 210 MiB are free');
    expect(reasonIn('en', { reason: 'docker.io/x: not found', reasonCode: '' })).toBe('docker.io/x: not found');
    expect(reasonIn('zh', { reason: 'manifest unknown', reasonCode: '' })).toBe('manifest unknown');
    expect(reasonIn('en', { reason: 'idle', reasonCode: 'idle' })).toBe('Nobody was connected for too long');
    expect(reasonIn('zh', {})).toBe('');
  });

  it('gives hints by state and close code, and none where there is none', () => {
    expect(hintIn('zh', { state: 'failed', hint: 'Try again.' })).toMatch(/请重试/);
    expect(hintIn('zh', { state: 'running', hint: '' })).toBe('');
    expect(hintIn('en', { state: 'failed', hint: 'Try again.' })).toBe('Try again.');
    expect(closeHintIn('zh', { code: 'node_offline', hint: 'The node is away; connect ag' })).toMatch(/完好等待/);
    expect(closeHintIn('en', { code: 'node_offline', hint: 'The node is away.' })).toBe('The node is away.');
  });
});
