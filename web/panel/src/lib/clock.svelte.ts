// One clock for everything that counts down, ticking once a second while the page is seen.
import { api } from './app.svelte.ts';

let now = $state(Date.now());

const tick = () => (now = api.serverNow());
setInterval(() => document.visibilityState === 'visible' && tick(), 1000);
document.addEventListener('visibilitychange', tick);

export const clock = {
  /** The server's time in ms since 1970, renewed every second. */
  get now(): number {
    return now;
  },
};
