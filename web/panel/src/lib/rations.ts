// What an environment may have, in as few words as a card has room for.
import type { Rations } from './api/types.ts';
import { bytes } from './format.ts';
import type { t } from './i18n/i18n.svelte.ts';

/** One piece of text for each ration that is limited, and for what is granted, the most important first, in the language of `say`. */
export function rations(r: Rations, say: typeof t): string[] {
  const list = [bytes(r.memoryBytes)];
  if (r.memoryHighBytes > 0 && r.memoryHighBytes < r.memoryBytes) list.push(say('spec.memoryHigh', { n: bytes(r.memoryHighBytes) }));
  list.push(say('spec.cpu', { n: r.cpus }));
  if (r.diskBytes > 0) list.push(say('spec.diskOf', { n: bytes(r.diskBytes) }));
  const disk = pair(r.ioReadBps, r.ioWriteBps, (n) => `${bytes(n)}/s`);
  if (disk) list.push(say('spec.diskRate', { n: disk }));
  const operations = pair(r.ioReadIops, r.ioWriteIops, String);
  if (operations) list.push(say('spec.diskOps', { n: operations }));
  const net = pair(r.netDownBits, r.netUpBits, (n) => `${Math.round(n / 1e4) / 100} Mbit/s`);
  if (net) list.push(say('spec.net', { n: net }));
  if (r.capAdd.includes('NET_RAW')) list.push(say('spec.raw'));
  return list;
}

/** What comes in and what goes out: one figure when they are alike, arrows when not. */
function pair(inward: number, outward: number, show: (n: number) => string): string {
  if (inward === outward) return inward > 0 ? show(inward) : '';
  return [inward > 0 ? `↓ ${show(inward)}` : '', outward > 0 ? `↑ ${show(outward)}` : ''].filter(Boolean).join(' ');
}
