// What a person chose on this browser: theme and how terminals look and behave.
import { shared } from './api/browser.ts';

export type Theme = 'light' | 'dark';
type ThemeChoice = Theme | 'system';

const systemDark = matchMedia('(prefers-color-scheme: dark)');
const coarse = matchMedia('(pointer: coarse)');

let choice = $state<ThemeChoice>((shared.get('learnos.theme') as ThemeChoice | null) ?? 'system');
let systemIsDark = $state(systemDark.matches);
systemDark.addEventListener('change', () => (systemIsDark = systemDark.matches));

function flag(name: string, initial: boolean) {
  const stored = shared.get(`learnos.${name}`);
  let value = $state(stored === null ? initial : stored === 'true');
  return {
    get on() {
      return value;
    },
    set on(on: boolean) {
      value = on;
      shared.set(`learnos.${name}`, String(on));
    },
  };
}

export const FONT_MIN = 9;
export const FONT_MAX = 28;
let fontSize = $state(Math.min(FONT_MAX, Math.max(FONT_MIN, Number(shared.get('learnos.fontSize')) || 14)));

export const prefs = {
  get theme(): Theme {
    return choice === 'system' ? (systemIsDark ? 'dark' : 'light') : choice;
  },
  get followsSystem(): boolean {
    return choice === 'system';
  },
  /** Light or dark; choosing what the system has anyway goes back to following it. */
  set theme(theme: Theme) {
    choice = theme === (systemIsDark ? 'dark' : 'light') ? 'system' : theme;
    if (choice === 'system') shared.remove('learnos.theme');
    else shared.set('learnos.theme', choice);
  },
  get fontSize(): number {
    return fontSize;
  },
  set fontSize(size: number) {
    fontSize = Math.min(FONT_MAX, Math.max(FONT_MIN, Math.round(size)));
    shared.set('learnos.fontSize', String(fontSize));
  },
  copyOnSelect: flag('copyOnSelect', false),
  rightClickPastes: flag('rightClickPastes', false),
  /** The row of keys that phones lack. */
  keyBar: flag('keyBar', coarse.matches),
};
