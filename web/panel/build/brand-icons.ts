// Brand marks, taken from the npm package simple-icons while building: two virtual modules that hold
// only the marks the panel may show, so neither the 3,000 others nor a copy of any file lands in the tree.
//
//   virtual:brands        the marks of images nearly every installation offers (in the first load)
//   virtual:brands/more   the long tail, fetched only when an image names one of them
import * as simpleIcons from 'simple-icons';
import type { Plugin } from 'vite';

const common = [
  'ubuntu', 'debian', 'alpinelinux', 'fedora', 'centos', 'archlinux', 'linux', 'gnubash',
  'python', 'nodedotjs', 'deno', 'go', 'rust', 'openjdk', 'php', 'ruby', 'perl', 'haskell', 'erlang', 'elixir', 'gnu',
  'redis', 'postgresql', 'mongodb', 'neo4j', 'caddy',
];
const more = [
  'rockylinux', 'almalinux', 'opensuse', 'gentoo', 'kalilinux', 'nixos', 'voidlinux', 'manjaro', 'linuxmint', 'redhat',
  'freebsd', 'mysql', 'mariadb', 'sqlite', 'nginx', 'apache', 'bun', 'zig', 'nim', 'julia', 'r', 'scala', 'kotlin',
  'swift', 'dart', 'lua', 'clojure', 'ocaml', 'fsharp', 'dotnet', 'crystal', 'c', 'cplusplus', 'typescript',
  'javascript', 'jupyter', 'tensorflow', 'pytorch', 'git', 'vim', 'neovim', 'docker', 'kubernetes', 'etcd', 'consul',
  'vault', 'rabbitmq', 'apachekafka', 'elasticsearch', 'influxdb', 'clickhouse', 'cockroachlabs', 'duckdb', 'grafana',
  'prometheus', 'ansible', 'terraform', 'llvm', 'tmux', 'flask', 'django', 'rubyonrails', 'elm', 'purescript',
  'racket', 'commonlisp', 'gnuemacs', 'solidity', 'webassembly', 'natsdotio', 'traefikproxy', 'haproxy',
];

interface Mark { path: string; hex: string }

function marks(slugs: string[]): Record<string, Mark> {
  const bySlug = new Map(Object.values(simpleIcons).map((icon) => [icon.slug, icon]));
  return Object.fromEntries(
    slugs.map((slug) => {
      const icon = bySlug.get(slug);
      if (!icon) throw new Error(`simple-icons has no mark "${slug}"; remove it from build/brand-icons.ts`);
      return [slug, { path: icon.path, hex: icon.hex }];
    }),
  );
}

export function brandIcons(): Plugin {
  const lists: Record<string, string[]> = { 'virtual:brands': common, 'virtual:brands/more': more };
  return {
    name: 'learnos:brand-icons',
    resolveId: (id) => (id in lists ? `\0${id}` : undefined),
    load(id) {
      const slugs = lists[id.slice(1)];
      if (id[0] !== '\0' || !slugs) return undefined;
      // JSON.parse of one string loads faster than an object literal of this size.
      return `export default JSON.parse(${JSON.stringify(JSON.stringify(marks(slugs)))})`;
    },
  };
}
