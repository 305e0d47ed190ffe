// What the gateway and nodes say, in the page's language: by code, out of the file that the SSH door has too. English is
// what they sent; a code that is not known here stays English.
import zh from '../../../../words/zh.json';
import type { Lang } from './dict.ts';

export interface Words {
  message: string;
  hint: string;
}

/** What a reason is found by; environments and lines of their history have it. */
export interface Reasoned {
  reason?: string;
  reasonCode?: string;
  reasonValues?: Record<string, string>;
}

const problems: Record<string, Words> = zh.problems;
const reasons: Record<string, string> = zh.reasons;
const hints: Record<string, string> = zh.hints;

// Reasons whose English is a single word in the API.
const english: Record<string, string> = { lifetime: 'its time was up', idle: 'nobody was connected for too long' };

const has = (table: object, key: string | undefined): key is string => key !== undefined && Object.hasOwn(table, key);
const fill = (text: string, values: Record<string, string>) => text.replace(/\{(\w+)\}/g, (whole, name: string) => values[name] ?? whole);

/** An error of the API. */
export function problemIn(lang: Lang, error: { code: string; message: string; hint: string; field: string }): Words {
  if (lang !== 'zh' || !has(problems, error.code)) return { message: error.message, hint: error.hint };
  const words = problems[error.code]!;
  return { message: fill(words.message, { field: error.field, message: error.message }), hint: words.hint };
}

/** Why an environment waits or has ended; empty when nothing was said. */
export function reasonIn(lang: Lang, of: Reasoned): string {
  const code = of.reasonCode;
  if (lang === 'zh' && has(reasons, code)) return fill(reasons[code]!, of.reasonValues ?? {});
  const text = has(english, code) ? english[code]! : (of.reason ?? '');
  // A sentence of ours begins like one; a registry's own words stay as they came.
  return has(reasons, code) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
}

/** What the gateway says to do about an environment; empty when nothing. */
export function hintIn(lang: Lang, env: { state: string; hint?: string }): string {
  return lang === 'zh' && env.hint && has(hints, env.state) ? hints[env.state]! : (env.hint ?? '');
}

/** What to do, from a websocket's close reason: the gateway's JSON `{"code","hint"}`, cut to what fits there. */
export function closeHintIn(lang: Lang, of: { code: string; hint: string }): string {
  return of.hint && lang === 'zh' && has(problems, of.code) ? problems[of.code]!.hint : of.hint;
}
