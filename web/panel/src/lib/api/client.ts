// Talking to the gateway: one `request`, errors a person can act on, and a sign-in that renews itself.
//
// The tokens are HttpOnly cookies; this code never sees them. What it keeps is when they run out, and when
// they were last renewed, shared by all tabs of the browser. Renewing rotates the refresh token and using an
// old one revokes the whole sign-in, so only one tab may renew at a time, and the others must notice.
import type { Session } from './types.ts';

/** What the gateway (or the way to it) answered instead of what was asked for. */
export class ApiError extends Error {
  override name = 'ApiError';
  constructor(
    /** HTTP status; 0 when there was no answer at all. */
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint: string,
    /** The field of the request that was refused; empty when it was none. */
    readonly field = '',
  ) {
    super(message);
  }
}

export interface Clock {
  now(): number;
}

/** A string store all tabs share: localStorage, or memory where that is blocked. */
export interface Shared {
  get(key: string): string | null;
  set(key: string, value: string): void;
  remove(key: string): void;
}

/** Runs `work` while no other tab runs work under `name`. */
export type Exclusive = <T>(name: string, work: () => Promise<T>) => Promise<T>;

export interface ClientOptions {
  fetch: typeof fetch;
  shared: Shared;
  exclusive: Exclusive;
  clock: Clock;
  /** The sign-in is over (the refresh was refused). */
  signedOut: () => void;
}

const EXPIRES = 'learnos.expires';
const RENEWED = 'learnos.renewed';
/** Renew this long before the access token runs out, or at half its life if that is sooner. */
const MARGIN = 60_000;

export class Client {
  private renewing: Promise<boolean> | undefined;
  private renewTimer: ReturnType<typeof setTimeout> | undefined;
  private skew = 0;

  constructor(private readonly o: ClientOptions) {}

  /** The server's clock now, in ms since 1970, as far as its answers told. */
  serverNow(): number {
    return this.o.clock.now() + this.skew;
  }

  get = <T>(path: string) => this.request<T>('GET', path);
  post = <T>(path: string, body?: unknown) => this.request<T>('POST', path, body);
  patch = <T>(path: string, body: unknown) => this.request<T>('PATCH', path, body);
  delete = (path: string) => this.request<unknown>('DELETE', path);

  /** Signs in or up; the answer's cookies are the browser's business, its lifetime is ours. */
  async signIn(path: '/auth/login' | '/auth/register', body: unknown): Promise<Session> {
    const session = await this.once<Session>('POST', path, body);
    this.noteSession(session);
    return session;
  }

  async signOut(): Promise<void> {
    clearTimeout(this.renewTimer);
    try {
      await this.once<unknown>('POST', '/auth/logout', {});
    } finally {
      this.forget();
    }
  }

  /** Asks `path`; a 401 renews the sign-in once and asks again. */
  async request<T>(method: string, path: string, body?: unknown): Promise<T> {
    const began = this.o.clock.now();
    try {
      return await this.once<T>(method, path, body);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401 || path.startsWith('/auth/')) throw error;
      if (!(await this.renew(began))) {
        this.forget();
        this.o.signedOut();
        throw error;
      }
      return await this.once<T>(method, path, body);
    }
  }

  /** Makes sure that the access token is good for a moment: sockets can't be asked twice. */
  async ensureFresh(): Promise<void> {
    const now = this.o.clock.now();
    const expires = Number(this.o.shared.get(EXPIRES));
    if (expires && expires - now > 15_000) return;
    if (!(await this.renew(now))) {
      this.forget();
      this.o.signedOut();
      throw new ApiError(401, 'signed_out', '', '');
    }
  }

  /**
   * Renews the sign-in unless some tab already did after `since`. False: refused, sign in again.
   * Throws when the gateway can't be reached, since that says nothing about the sign-in.
   */
  renew(since: number): Promise<boolean> {
    this.renewing ??= this.o
      .exclusive('learnos.renew', async () => {
        const renewed = Number(this.o.shared.get(RENEWED));
        if (renewed && renewed > since) return true;
        try {
          this.noteSession(await this.once<Session>('POST', '/auth/refresh', {}));
          return true;
        } catch (error) {
          if (error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429) return false;
          throw error;
        }
      })
      .finally(() => (this.renewing = undefined));
    return this.renewing;
  }

  /** Plans the next renewal; call at start, for a page that was loaded with a sign-in in its cookies. */
  planRenewal(): void {
    clearTimeout(this.renewTimer);
    const expires = Number(this.o.shared.get(EXPIRES));
    if (!expires) return;
    const now = this.o.clock.now();
    const left = expires - now;
    const wait = Math.max(1000, left - Math.min(MARGIN, left / 2));
    this.renewTimer = setTimeout(() => {
      // Another tab may have been quicker; the plan then starts over from the new expiry.
      if (Number(this.o.shared.get(EXPIRES)) > expires) return this.planRenewal();
      void this.renew(now).then(
        (ok) => {
          if (ok) return this.planRenewal();
          this.forget();
          this.o.signedOut();
        },
        () => undefined, // unreachable: the next request will find out
      );
    }, Math.min(wait, 2 ** 31 - 1));
  }

  private noteSession(session: Session): void {
    const now = this.o.clock.now();
    this.o.shared.set(RENEWED, String(now));
    this.o.shared.set(EXPIRES, String(now + session.expiresIn * 1000));
    this.planRenewal();
  }

  private forget(): void {
    clearTimeout(this.renewTimer);
    this.o.shared.remove(EXPIRES);
    this.o.shared.remove(RENEWED);
  }

  private async once<T>(method: string, path: string, body?: unknown): Promise<T> {
    let response: Response;
    try {
      response = await this.o.fetch(`/api/v1${path}`, {
        method,
        credentials: 'same-origin',
        headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      throw new ApiError(0, 'unreachable', '', '');
    }
    const date = Date.parse(response.headers.get('Date') ?? '');
    // The header has whole seconds; small differences are its rounding.
    if (date) this.skew = Math.abs(date - this.o.clock.now()) > 2000 ? date - this.o.clock.now() : 0;
    const text = await response.text().catch(() => '');
    let json: unknown;
    try {
      json = text ? JSON.parse(text) : undefined;
    } catch {
      json = undefined;
    }
    if (response.ok) return json as T;
    throw toError(response.status, json);
  }
}

/** The error an answer carries; one with a code of our own when it isn't the gateway's kind. */
export function toError(status: number, json: unknown): ApiError {
  const error = (json as { error?: unknown } | undefined)?.error;
  if (error && typeof error === 'object') {
    const { code, message, hint, field } = error as Record<string, unknown>;
    if (typeof message === 'string' && message) {
      return new ApiError(status, typeof code === 'string' ? code : 'error', message, typeof hint === 'string' ? hint : '', typeof field === 'string' ? field : '');
    }
  }
  return new ApiError(status, status >= 500 ? 'server_trouble' : 'unexpected_answer', '', '');
}
