import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { leaseLock } from '../src/lib/api/browser.ts';
import { ApiError, Client, toError, type Exclusive, type Shared } from '../src/lib/api/client.ts';

class Store implements Shared {
  private readonly map = new Map<string, string>();
  get = (key: string) => this.map.get(key) ?? null;
  set = (key: string, value: string) => void this.map.set(key, value);
  remove = (key: string) => void this.map.delete(key);
}

/** As navigator.locks does it, between the clients of one test. */
function queueLock(): Exclusive {
  let last: Promise<unknown> = Promise.resolve();
  return <T>(_: string, work: () => Promise<T>) => {
    const mine = last.then(work, work);
    last = mine.catch(() => undefined);
    return mine;
  };
}

/** A gateway with rotating refresh tokens: using an old one ends the sign-in, as the real one does. */
class Gateway {
  access = 1;
  valid = 1; // the access token requests carry, in the cookie all tabs share
  refreshes = 0;
  requests = 0;
  refuse = false;
  down = false;
  delay = 5;

  fetch: typeof fetch = async (input, init) => {
    const path = String(input);
    const carried = this.valid;
    await new Promise((resolve) => setTimeout(resolve, this.delay));
    if (this.down) throw new TypeError('Failed to fetch');
    const json = (status: number, body: unknown) => new Response(JSON.stringify(body), { status });
    if (path.endsWith('/auth/refresh')) {
      this.refreshes++;
      if (this.refuse) return json(401, { error: { code: 'bad_refresh', message: 'ended', hint: 'sign in' } });
      this.valid = ++this.access;
      return json(200, { expiresIn: 600, user: {} });
    }
    if (path.endsWith('/auth/login')) return init?.body?.toString().includes('right') ? json(200, { expiresIn: 600, user: { username: 'ada' } }) : json(401, { error: { code: 'bad_credentials', message: 'no', hint: 'again' } });
    this.requests++;
    if (carried !== this.access) return json(401, { error: { code: 'unauthenticated', message: 'no', hint: '' } });
    return json(200, { ok: true });
  };

  expire() {
    this.access++;
  }
}

let gateway: Gateway;
let store: Store;
let lock: Exclusive;
let signedOut: number;
const clients: Client[] = [];
const tab = () => {
  const client = new Client({ fetch: gateway.fetch, shared: store, exclusive: lock, clock: Date, signedOut: () => signedOut++ });
  clients.push(client);
  return client;
};

beforeEach(() => {
  vi.useFakeTimers();
  gateway = new Gateway();
  store = new Store();
  lock = queueLock();
  signedOut = 0;
});
afterEach(() => vi.useRealTimers());

const settle = async <T>(work: Promise<T>): Promise<T> => {
  work.catch(() => undefined);
  await vi.advanceTimersByTimeAsync(5000);
  return work;
};

describe('a sign-in that renews itself', () => {
  it('renews once for many requests at once, and repeats each of them', async () => {
    gateway.expire();
    const client = tab();
    const answers = await settle(Promise.all(Array.from({ length: 8 }, () => client.get('/me'))));
    expect(answers).toHaveLength(8);
    expect(gateway.refreshes).toBe(1);
    expect(gateway.requests).toBe(16);
  });

  it('renews once for many tabs at once', async () => {
    gateway.expire();
    const tabs = Array.from({ length: 5 }, tab);
    await settle(Promise.all(tabs.map((client) => client.get('/me'))));
    expect(gateway.refreshes).toBe(1);
    expect(signedOut).toBe(0);
  });

  it('renews once for many tabs where the browser has no locks', async () => {
    gateway.expire();
    lock = leaseLock(store, () => Date.now());
    const tabs = Array.from({ length: 4 }, tab);
    await settle(Promise.all(tabs.map((client) => client.get('/me'))));
    expect(gateway.refreshes).toBe(1);
  });

  it('goes to the door when refused, and only then', async () => {
    gateway.expire();
    gateway.refuse = true;
    const client = tab();
    await expect(settle(client.get('/me'))).rejects.toMatchObject({ status: 401 });
    expect(signedOut).toBe(1);
    expect(store.get('learnos.expires')).toBeNull();

    gateway.down = true;
    await expect(settle(client.get('/me'))).rejects.toMatchObject({ status: 0, code: 'unreachable' });
    expect(signedOut).toBe(1);
  });

  it('does not renew for a wrong password', async () => {
    const client = tab();
    await expect(settle(client.signIn('/auth/login', { password: 'wrong' }))).rejects.toMatchObject({ code: 'bad_credentials', hint: 'again' });
    expect(gateway.refreshes).toBe(0);
    expect(signedOut).toBe(0);
  });

  it('renews an idle page before the token runs out, in one tab only', async () => {
    const first = tab();
    const second = tab();
    await settle(first.signIn('/auth/login', { password: 'right' }));
    second.planRenewal();
    await vi.advanceTimersByTimeAsync(530_000);
    expect(gateway.refreshes).toBe(0);
    await vi.advanceTimersByTimeAsync(20_000);
    expect(gateway.refreshes).toBe(1);
    await vi.advanceTimersByTimeAsync(600_000);
    expect(gateway.refreshes).toBe(2);
  });

  it('makes sure of the token before a socket opens', async () => {
    const client = tab();
    await settle(client.signIn('/auth/login', { password: 'right' }));
    await settle(client.ensureFresh());
    expect(gateway.refreshes).toBe(0);
    store.set('learnos.expires', String(Date.now() + 1000));
    await settle(client.ensureFresh());
    expect(gateway.refreshes).toBe(1);
  });
});

describe('errors', () => {
  it('carry the gateway’s message and hint', () => {
    const error = toError(409, { error: { code: 'username_taken', message: 'taken', hint: 'choose another' } });
    expect(error).toBeInstanceOf(ApiError);
    expect(error).toMatchObject({ status: 409, code: 'username_taken', message: 'taken', hint: 'choose another' });
  });

  it('have words of their own when the answer is not the gateway’s', () => {
    for (const body of [undefined, null, 'oops', 7, [], {}, { error: null }, { error: 'x' }, { error: { message: '' } }, { error: { message: 3 } }]) {
      expect(toError(502, body)).toMatchObject({ code: 'server_trouble' });
      expect(toError(418, body)).toMatchObject({ code: 'unexpected_answer' });
    }
  });
});
