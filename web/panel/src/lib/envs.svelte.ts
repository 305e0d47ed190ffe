// The person's environments and their load, kept current by the gateway's event feed. Nothing polls: the list
// is fetched once per connection of the feed, to learn what went away while it was down.
import { api } from './app.svelte.ts';
import { ended, type Environment, type FeedMessage, type SessionInfo, type State, type Stats } from './api/types.ts';
import type { Link } from './term/reconnect.ts';
import { ResilientSocket } from './term/socket.ts';

/** Close code of a socket whose sign-in ended. */
export const SIGNED_OUT = 4401;

/** How many seconds of load are kept for the little charts. */
export const SAMPLES = 60;

export interface Load {
  now: Stats;
  cpu: number[];
  memory: number[];
  /** Bytes per second, both ways together. */
  traffic: number[];
}

const order = (a: Environment, b: Environment) => (a.createdAt < b.createdAt ? 1 : -1);

class Environments {
  private byId = $state<Record<string, Environment>>({});
  private loads = $state.raw<Record<string, Load>>({});
  /** Filled by the first answer. */
  loaded = $state(false);
  link = $state<Link>({ state: 'idle' });
  trouble = $state<unknown>();
  /** Called for each change of state, the new one last. */
  onChange: ((now: Environment, before: State | undefined) => void) | undefined;

  private socket: ResilientSocket | undefined;
  private heard = new Map<string, number>();
  private sequence = 0;
  /** What a snapshot still owes us before the list is whole. */
  private owed: Set<string> | undefined;
  private listed = false;

  /** Newest first; those that ended are not in it. */
  readonly current = $derived(Object.values(this.byId).filter((env) => !ended(env)).sort(order));

  get(id: string): Environment | undefined {
    return this.byId[id];
  }

  load(id: string): Load | undefined {
    return this.loads[id];
  }

  start(): void {
    if (this.socket) return;
    this.socket = new ResilientSocket({
      protocol: 'learnos.events.v1',
      url: async () => {
        await api.ensureFresh();
        return `${location.origin.replace(/^http/, 'ws')}/api/v1/events`;
      },
      message: (data) => {
        if (typeof data === 'string') this.take(JSON.parse(data) as FeedMessage);
        this.socket?.greeted();
      },
      state: (link) => {
        this.link = link;
        // An older gateway's hello lists nothing: then ask.
        if (link.state === 'open' && !this.listed) void this.sync();
      },
      lost: async (greeted, code) => {
        this.listed = false;
        // It may be an ended sign-in; asking for anything finds out and acts on it.
        if (!greeted || code === SIGNED_OUT) await api.get('/me');
        return false;
      },
    });
    this.socket.start();
    void this.sync();
  }

  stop(): void {
    this.socket?.finish();
    this.socket = undefined;
    this.byId = {};
    this.loads = {};
    this.heard.clear();
    this.loaded = false;
    this.listed = false;
    this.owed = undefined;
    this.link = { state: 'idle' };
  }

  /** Fetches the list; what the feed said meanwhile is newer and stays. */
  async sync(): Promise<void> {
    const began = this.sequence;
    try {
      const list = await api.get<Environment[]>('/environments');
      const next: Record<string, Environment> = {};
      for (const env of list) next[env.id] = env;
      for (const [id, env] of Object.entries(this.byId)) {
        if ((this.heard.get(id) ?? 0) > began) next[id] = env;
        else if (!next[id] && !ended(env)) next[id] = { ...env, state: 'deleted' };
      }
      this.byId = next;
      this.trouble = undefined;
    } catch (error) {
      this.trouble = error;
    }
    this.loaded = true;
  }

  /** Takes an environment as an answer of the gateway gave it. */
  put(env: Environment): void {
    const before = this.byId[env.id]?.state;
    this.heard.set(env.id, ++this.sequence);
    this.byId[env.id] = env;
    if (before !== env.state) this.onChange?.(env, before);
    if (ended(env) && this.loads[env.id]) {
      const { [env.id]: _, ...rest } = this.loads;
      this.loads = rest;
    }
  }

  private take(message: FeedMessage): void {
    if (message.type === 'hello') {
      if (!message.environments) return;
      this.listed = true;
      const here = new Set(message.environments);
      for (const env of Object.values(this.byId)) if (!here.has(env.id) && !ended(env)) this.put({ ...env, state: 'deleted' });
      this.owed = here;
      this.paid();
    } else if (message.type === 'environment') {
      this.put(message.environment);
      this.owed?.delete(message.environment.id);
      this.paid();
    }
    if (message.type === 'stats') this.sample(message.environment, message.stats);
  }

  private paid(): void {
    if (!this.owed || this.owed.size > 0) return;
    this.owed = undefined;
    this.loaded = true;
    this.trouble = undefined;
  }

  private sample(id: string, stats: Stats): void {
    const last = this.loads[id];
    const bytes = stats.rxBytes + stats.txBytes;
    const before = last ? last.now.rxBytes + last.now.txBytes : bytes;
    const push = (list: number[] | undefined, value: number) => [...(list ?? []).slice(1 - SAMPLES), value];
    this.loads = {
      ...this.loads,
      [id]: {
        now: stats,
        cpu: push(last?.cpu, stats.cpuPercent),
        memory: push(last?.memory, stats.memoryBytes),
        traffic: push(last?.traffic, Math.max(0, bytes - before)),
      },
    };
  }

  async create(image: string): Promise<Environment> {
    const env = await api.post<Environment>('/environments', { image });
    // The feed may have been quicker, and is then further along.
    if (!this.byId[env.id]) this.put(env);
    return env;
  }

  /** `force`: give the slot back although its node can't be reached. */
  async remove(id: string, force = false): Promise<void> {
    const began = this.sequence;
    const answer = (await api.delete(`/environments/${id}${force ? '?force=true' : ''}`)) as Environment | undefined;
    // A deletion may be over before its answer is here: what the feed said meanwhile is newer and stays.
    if ((this.heard.get(id) ?? 0) > began) return;
    if (answer?.id) return this.put(answer);
    const env = this.byId[id];
    if (env && !ended(env) && env.state !== 'failed') this.put({ ...env, state: 'stopping' });
    else if (env?.state === 'failed') this.put({ ...env, state: 'deleted' });
  }

  async extend(id: string, seconds: number): Promise<Environment | undefined> {
    const answer = await api.post<Environment>(`/environments/${id}/extend`, { seconds });
    const env = this.byId[id];
    if (env) this.put({ ...env, deadline: answer.deadline, latestDeadline: answer.latestDeadline });
    return this.byId[id];
  }

  async retry(id: string): Promise<Environment> {
    const began = this.sequence;
    const answer = await api.post<Environment | undefined>(`/environments/${id}/retry`, {});
    if (answer?.id && (this.heard.get(answer.id) ?? 0) <= began) this.put(answer);
    return answer ?? this.byId[id]!;
  }

  sessions(id: string): Promise<SessionInfo[]> {
    return api.get<SessionInfo[]>(`/environments/${id}/sessions`);
  }

  async newSession(id: string, cols: number, rows: number): Promise<string> {
    return (await api.post<{ id: string }>(`/environments/${id}/sessions`, { tty: true, cols, rows })).id;
  }

  endSession(id: string, session: string): Promise<unknown> {
    return api.delete(`/environments/${id}/sessions/${session}`);
  }
}

export const envs = new Environments();
