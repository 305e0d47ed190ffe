// Who is signed in, and the client they talk through.
import { exclusive, shared } from './api/browser.ts';
import { ApiError, Client } from './api/client.ts';
import type { Config, Session, User } from './api/types.ts';
import { paths, router, safeNext } from './router.svelte.ts';

let user = $state<User>();
let config = $state<Config>();
/** Until the first answer nobody knows whether there is a sign-in. */
let phase = $state<'starting' | 'unreachable' | 'ready'>('starting');
let trouble = $state<unknown>();

export const api = new Client({
  fetch: (...args) => fetch(...args),
  shared,
  exclusive,
  clock: Date,
  signedOut: () => {
    user = undefined;
    toSignIn();
  },
});

function toSignIn(): void {
  const { page } = router.route;
  if (page === 'signin' || page === 'signup') return;
  const here = location.pathname + location.search;
  router.go(here === '/' ? paths.signIn : `${paths.signIn}?next=${encodeURIComponent(here)}`, { replace: true });
}

function arrive(session: Session): void {
  user = session.user;
  router.go(safeNext(new URLSearchParams(location.search).get('next')), { replace: true });
}

export const app = {
  get user(): User | undefined {
    return user;
  },
  get config(): Config | undefined {
    return config;
  },
  get phase() {
    return phase;
  },
  get trouble(): unknown {
    return trouble;
  },

  /** Finds out where we stand: the server's rules, and who we are. */
  async start(): Promise<void> {
    phase = 'starting';
    try {
      const [rules, me] = await Promise.all([
        api.get<Config>('/config'),
        api.get<User>('/me').catch((error: unknown) => {
          if (error instanceof ApiError && error.status === 401) return undefined;
          throw error;
        }),
      ]);
      config = rules;
      user = me;
      if (me) api.planRenewal();
      phase = 'ready';
    } catch (error) {
      trouble = error;
      phase = 'unreachable';
    }
  },

  async signIn(username: string, password: string): Promise<void> {
    arrive(await api.signIn('/auth/login', { username, password }));
  },

  async signUp(body: { username: string; password: string; email?: string; code?: string }): Promise<void> {
    arrive(await api.signIn('/auth/register', body));
  },

  async signOut(): Promise<void> {
    try {
      await api.signOut();
    } finally {
      user = undefined;
      router.go(paths.signIn);
    }
  },

  setUser(me: User): void {
    user = me;
  },
};

// Signing in or out in one tab is noticed in the others.
addEventListener('storage', (event) => {
  if (event.key !== 'learnos.expires') return;
  if (event.newValue === null && user) {
    user = undefined;
    toSignIn();
  } else if (event.newValue !== null && !user && phase === 'ready') {
    void app.start().then(() => {
      if (user && (router.route.page === 'signin' || router.route.page === 'signup')) {
        router.go(safeNext(new URLSearchParams(location.search).get('next')), { replace: true });
      }
    });
  } else if (event.newValue !== null) {
    api.planRenewal();
  }
});
