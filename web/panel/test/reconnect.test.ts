import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { backoff, MAX_DELAY, step, type Happening, type Link } from '../src/lib/term/reconnect.ts';

function run(...what: Happening[]): { link: Link; effects: string[] } {
  let link: Link = { state: 'idle' };
  const effects: string[] = [];
  for (const happening of what) {
    const [next, did] = step(link, happening, 1);
    link = next;
    effects.push(...did.map((effect) => (effect.do === 'wait' ? `wait ${effect.delay}` : effect.do)));
  }
  return { link, effects };
}

describe('reconnecting', () => {
  it('waits longer each time, up to five seconds, and starts over after a good connection', () => {
    const failing: Happening[] = ['start', 'lost', 'timer', 'lost', 'timer', 'lost', 'timer', 'lost', 'timer', 'lost', 'timer', 'lost', 'timer', 'lost'];
    expect(run(...failing).effects.filter((e) => e.startsWith('wait'))).toEqual(['wait 250', 'wait 500', 'wait 1000', 'wait 2000', 'wait 4000', 'wait 5000', 'wait 5000']);
    expect(run(...failing, 'timer', 'greeted', 'lost').effects.at(-1)).toBe('wait 250');
  });

  it('does not wait when the network is back or somebody looks', () => {
    const { link, effects } = run('start', 'greeted', 'lost', 'nudge');
    expect(link).toEqual({ state: 'connecting', attempt: 0 });
    expect(effects).toEqual(['connect', 'wait 250', 'cancelWait', 'connect']);
    expect(run('start', 'greeted', 'nudge').effects).toEqual(['connect']);
  });

  it('is over when finished, whatever happens then', () => {
    expect(run('start', 'finish', 'lost', 'timer', 'nudge', 'start', 'greeted').effects).toEqual(['connect', 'close']);
    expect(run('start', 'lost', 'finish', 'timer').effects).toEqual(['connect', 'wait 250', 'cancelWait']);
  });

  it('has at most one socket and one timer at any time', () => {
    const happenings: Happening[] = ['start', 'greeted', 'lost', 'timer', 'nudge', 'finish'];
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...happenings), { maxLength: 60 }), fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), (list, random) => {
        let link: Link = { state: 'idle' };
        let sockets = 0;
        let timers = 0;
        for (const what of list) {
          // A driver only reports what can happen.
          if (what === 'timer' && timers === 0) continue;
          if ((what === 'lost' || what === 'greeted') && sockets === 0) continue;
          if (what === 'timer') timers--;
          if (what === 'lost') sockets--;
          const [next, effects] = step(link, what, random);
          for (const effect of effects) {
            if (effect.do === 'connect') sockets++;
            if (effect.do === 'close') sockets--;
            if (effect.do === 'wait') {
              timers++;
              expect(effect.delay).toBeGreaterThan(0);
              expect(effect.delay).toBeLessThanOrEqual(MAX_DELAY);
            }
            if (effect.do === 'cancelWait') timers--;
          }
          link = next;
          expect(sockets).toBe(link.state === 'connecting' || link.state === 'open' ? 1 : 0);
          expect(timers).toBe(link.state === 'waiting' ? 1 : 0);
        }
      }),
    );
  });

  it('spreads everybody’s return', () => {
    expect(backoff(3, 0)).toBeLessThan(backoff(3, 0.99));
    expect(backoff(1000, 0.99)).toBeLessThanOrEqual(MAX_DELAY);
  });
});
