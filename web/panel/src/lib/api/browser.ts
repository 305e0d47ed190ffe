// The browser's own parts for the API client: storage and locks, with stand-ins where they are missing
// (storage may be blocked; locks need HTTPS or localhost).
import type { Exclusive, Shared } from './client.ts';

const memory = new Map<string, string>();

export const shared: Shared = {
  get(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      return memory.get(key) ?? null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(key, value);
    } catch {
      memory.set(key, value);
    }
  },
  remove(key) {
    try {
      localStorage.removeItem(key);
    } catch {
      memory.delete(key);
    }
  },
};

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** A lease in shared storage: write, let others write, look who won. Good enough for tabs of one browser. */
export function leaseLock(store: Shared, now: () => number = Date.now): Exclusive {
  return async (name, work) => {
    const me = Math.random().toString(36).slice(2);
    const key = `${name}.lease`;
    for (;;) {
      const [holder, until] = (store.get(key) ?? '').split(' ');
      if (!holder || Number(until) < now() || holder === me) {
        store.set(key, `${me} ${now() + 10_000}`);
        await sleep(30);
        if ((store.get(key) ?? '').startsWith(`${me} `)) break;
      }
      await sleep(40 + Math.random() * 60);
    }
    try {
      return await work();
    } finally {
      if ((store.get(key) ?? '').startsWith(`${me} `)) store.remove(key);
    }
  };
}

// `navigator.locks` is typed as always there; on plain http to a host that isn't localhost it is not.
const locks = (globalThis.navigator as { locks?: LockManager } | undefined)?.locks;

export const exclusive: Exclusive = locks
  ? async <T>(name: string, work: () => Promise<T>) => (await locks.request(name, work)) as T
  : leaseLock(shared);
