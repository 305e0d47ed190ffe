// Short messages that come and go by themselves; errors stay until they were read.
import { ApiError } from './api/client.ts';
import { i18n, isKey, t } from './i18n/i18n.svelte.ts';
import { problemIn } from './i18n/server.ts';

export interface Toast {
  id: number;
  kind: 'done' | 'error';
  message: string;
  hint: string;
}

let next = 1;
const list = $state<Toast[]>([]);

function show(kind: Toast['kind'], message: string, hint: string, ms: number): void {
  const same = list.find((toast) => toast.message === message && toast.hint === hint);
  if (same) dismiss(same.id);
  const id = next++;
  list.push({ id, kind, message, hint });
  if (list.length > 4) list.shift();
  setTimeout(() => dismiss(id), ms);
}

function dismiss(id: number): void {
  const at = list.findIndex((toast) => toast.id === id);
  if (at >= 0) list.splice(at, 1);
}

/** What went wrong and what to do about it, in words. */
export function explain(error: unknown): { message: string; hint: string } {
  const code = error instanceof ApiError ? error.code : 'unexpected_answer';
  if (error instanceof ApiError && error.message) return problemIn(i18n.lang, error);
  const key = `error.${code}`;
  const hint = `error.${code}.hint`;
  if (isKey(key) && isKey(hint)) return { message: (t as (k: string) => string)(key), hint: (t as (k: string) => string)(hint) };
  return { message: t('error.unexpected_answer'), hint: t('error.unexpected_answer.hint') };
}

export const toasts = {
  get list(): readonly Toast[] {
    return list;
  },
  done(message: string, hint = ''): void {
    show('done', message, hint, 4000);
  },
  error(error: unknown): void {
    // Being sent to the sign-in page says it already.
    if (error instanceof ApiError && error.status === 401) return;
    const { message, hint } = explain(error);
    show('error', message, hint, 12_000);
  },
  problem(message: string, hint: string): void {
    show('error', message, hint, 12_000);
  },
  dismiss,
};
