// Which shells each environment has, as this page shows them. The gateway's list is the truth when an
// environment is opened; from then on this page's own acts keep it.
import { envs } from './envs.svelte.ts';

export interface Tab {
  session: string;
  /** What it is called: Shell 1, Shell 2 … */
  n: number;
}

let tabs = $state<Record<string, Tab[]>>({});
const opening = new Map<string, Promise<void>>();
let lastSize = { cols: 80, rows: 24 };

export const terminals = {
  of(env: string): readonly Tab[] {
    return tabs[env] ?? [];
  },

  /** Whether this page has asked what shells there are. */
  known(env: string): boolean {
    return env in tabs;
  },

  /** What the last terminal measured: a good guess for the next one. */
  noteSize(cols: number, rows: number): void {
    lastSize = { cols, rows };
  },

  /** Learns the running shells of an environment and makes a first one if there is none. Once at a time. */
  open(env: string): Promise<void> {
    let work = opening.get(env);
    if (!work) {
      work = (async () => {
        const live = (await envs.sessions(env)).filter((s) => s.tty && !s.exited);
        live.sort((a, b) => ((a.createdAt ?? '') < (b.createdAt ?? '') ? -1 : 1));
        tabs[env] = live.map((s, i) => ({ session: s.id, n: i + 1 }));
        if (live.length === 0) await this.create(env);
      })().finally(() => opening.delete(env));
      opening.set(env, work);
    }
    return work;
  },

  /** Starts a shell and returns its session. `instead`: the tab whose ended shell it replaces. */
  async create(env: string, instead?: string): Promise<string> {
    if (!(env in tabs) && !opening.has(env)) await this.open(env).catch(() => undefined);
    const session = await envs.newSession(env, lastSize.cols, lastSize.rows);
    const list = tabs[env] ?? [];
    const old = list.find((tab) => tab.session === instead);
    tabs[env] = old
      ? list.map((tab) => (tab === old ? { ...tab, session } : tab))
      : [...list, { session, n: Math.max(0, ...list.map((tab) => tab.n)) + 1 }];
    return session;
  },

  /** Ends a shell and forgets its tab. */
  async end(env: string, session: string): Promise<void> {
    await envs.endSession(env, session);
    this.drop(env, session);
  },

  drop(env: string, session: string): void {
    if (tabs[env]) tabs[env] = tabs[env].filter((tab) => tab.session !== session);
  },

  /** Forgets an environment's shells; they are asked for again when it is next opened. */
  forget(env: string): void {
    delete tabs[env];
  },

  forgetAll(): void {
    tabs = {};
  },
};
