// Brand marks by slug: the common ones are here, the others arrive when one is asked for.
import common from 'virtual:brands';

export interface Mark {
  path: string;
  hex: string;
}

// What people call things, where simple-icons calls them otherwise.
const aliases: Record<string, string> = {
  alpine: 'alpinelinux', arch: 'archlinux', bash: 'gnubash', gcc: 'gnu', golang: 'go', java: 'openjdk', mongo: 'mongodb',
  node: 'nodedotjs', nodejs: 'nodedotjs', postgres: 'postgresql', rocky: 'rockylinux', alma: 'almalinux', kali: 'kalilinux',
  debootstrap: 'debian', kafka: 'apachekafka', httpd: 'apache', traefik: 'traefikproxy', nats: 'natsdotio',
};

let marks = $state.raw<Record<string, Mark>>(common);
let asked = false;

/** The mark for `slug`, or undefined: none exists, or it is still on its way. */
export function mark(slug: string): Mark | undefined {
  const name = aliases[slug] ?? slug;
  return Object.hasOwn(marks, name) ? marks[name] : undefined;
}

/** Fetches the long tail if `slug` may be in it. */
export function wantMark(slug: string): void {
  if (asked || !slug || mark(slug)) return;
  asked = true;
  void import('virtual:brands/more').then(
    (more) => (marks = { ...marks, ...more.default }),
    () => (asked = false),
  );
}
