// The language in use, and `t`, which says things in it.
import { shared } from '../api/browser.ts';
import { dict, languages, type Key, type Lang, type ParamsOf } from './dict.ts';

const STORED = 'learnos.lang';

function initial(): Lang {
  const stored = shared.get(STORED);
  if (stored && stored in languages) return stored as Lang;
  return globalThis.navigator?.language?.toLowerCase().startsWith('zh') ? 'zh' : 'en';
}

let current = $state<Lang>(initial());

export const i18n = {
  get lang(): Lang {
    return current;
  },
  set lang(lang: Lang) {
    current = lang;
    shared.set(STORED, lang);
  },
};

type Args<K extends Key> = [ParamsOf<K>] extends [never] ? [] : [Record<ParamsOf<K>, string | number>];

/** The sentence `key` in the language in use, with its {placeholders} filled; wrong ones don't compile. */
export function t<K extends Key>(key: K, ...args: Args<K>): string {
  const sentence: string = dict[key][current];
  const values = args[0] as Record<string, string | number> | undefined;
  return values ? sentence.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole)) : sentence;
}

export function isKey(key: string): key is Key {
  return key in dict;
}
