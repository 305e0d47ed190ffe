import { describe, expect, it } from 'vitest';
import { dict, languages, type Lang } from '../src/lib/i18n/dict.ts';

const placeholders = (s: string) => [...s.matchAll(/\{(\w+)\}/g)].map((m) => m[1]).sort();

describe('dictionary', () => {
  it('says every key in every language, with the same placeholders', () => {
    for (const [key, entry] of Object.entries(dict)) {
      for (const lang of Object.keys(languages) as Lang[]) {
        expect(entry[lang].trim(), `${key}.${lang}`).not.toBe('');
        expect(placeholders(entry[lang]), `${key}.${lang}`).toEqual(placeholders(entry.en));
      }
    }
  });

  it('has a hint for every error', () => {
    const errors = Object.keys(dict).filter((key) => key.startsWith('error.') && !key.endsWith('.hint'));
    for (const key of errors) expect(dict, key).toHaveProperty([`${key}.hint`]);
  });

  it('is Chinese in Chinese', () => {
    const latin = Object.entries(dict).filter(([, entry]) => !/[\u4e00-\u9fff]/.test(entry.zh)).map(([key]) => key);
    expect(latin.sort()).toEqual(['envs.cpu', 'envs.of', 'lang.switch', 'spec.cpus']);
  });
});
