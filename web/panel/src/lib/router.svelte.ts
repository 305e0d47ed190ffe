// Which page the address names. Paths, not hashes: an address can be sent to somebody.

export type Route =
  | { page: 'signin' | 'signup' | 'gallery' | 'environments' | 'account' | 'notFound' }
  | { page: 'admin'; part: AdminPart }
  | { page: 'workspace'; env: string; session: string | undefined };

export const adminParts = ['images', 'nodes', 'users', 'audit'] as const;
export type AdminPart = (typeof adminParts)[number];

export function parse(pathname: string): Route {
  const [first, second, third, ...rest] = pathname.split('/').filter(Boolean).map(safeDecode);
  if (rest.length > 0) return { page: 'notFound' };
  switch (first) {
    case undefined:
      return { page: 'gallery' };
    case 'signin':
    case 'signup':
    case 'environments':
    case 'account':
      return second === undefined ? { page: first } : { page: 'notFound' };
    case 'admin': {
      const part = adminParts.find((p) => p === (second ?? 'images'));
      return part && third === undefined ? { page: 'admin', part } : { page: 'notFound' };
    }
    case 't':
      return second ? { page: 'workspace', env: second, session: third } : { page: 'notFound' };
    default:
      return { page: 'notFound' };
  }
}

function safeDecode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export const paths = {
  gallery: '/',
  environments: '/environments',
  account: '/account',
  signIn: '/signin',
  signUp: '/signup',
  admin: (part: AdminPart) => `/admin/${part}`,
  workspace: (env: string, session?: string) =>
    `/t/${encodeURIComponent(env)}${session ? `/${encodeURIComponent(session)}` : ''}`,
};

/** `next` as an address inside the panel; anything else (another site, a script) becomes the first page. */
export function safeNext(next: string | null): string {
  return next && /^\/(?![/\\])/.test(next) && !next.startsWith('/sign') ? next : '/';
}

let path = $state(location.pathname);

addEventListener('popstate', () => (path = location.pathname));

export const router = {
  get route(): Route {
    return parse(path);
  },
  get path(): string {
    return path;
  },
  go(to: string, { replace = false } = {}): void {
    if (replace) history.replaceState(null, '', to);
    else if (to !== location.pathname + location.search) history.pushState(null, '', to);
    path = location.pathname;
  },
};

/** Follows links inside the panel without loading the page again; put it on a container. */
export function followLinks(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = (event.target as Element | null)?.closest('a');
  if (!link || link.target || link.hasAttribute('download') || link.origin !== location.origin) return;
  if (link.pathname === location.pathname && link.hash) return;
  event.preventDefault();
  router.go(link.pathname + link.search);
}
