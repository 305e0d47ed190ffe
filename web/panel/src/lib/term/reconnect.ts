// When to connect, wait, or give up: a state machine without sockets or timers. `step` takes what happened
// and says what to do; whoever drives it owns the socket and the clock. Terminals and the event feed share it.

export type Link =
  | { state: 'idle' }
  | { state: 'connecting'; attempt: number }
  | { state: 'open' }
  /** `delay` is how long the wait began with, in ms. */
  | { state: 'waiting'; attempt: number; delay: number }
  /** Over for good: the far end finished, or we closed it. */
  | { state: 'done' };

export type Happening =
  | 'start'
  /** The far end greeted us (a terminal's hello, the feed's first message). */
  | 'greeted'
  /** The socket closed or could not be opened. */
  | 'lost'
  /** The wait is over. */
  | 'timer'
  /** The network came back or the page is looked at again: no reason to wait on. */
  | 'nudge'
  /** Nothing will come any more. */
  | 'finish';

export type Effect = { do: 'connect' } | { do: 'wait'; delay: number } | { do: 'cancelWait' } | { do: 'close' };

export const FIRST_DELAY = 250;
export const MAX_DELAY = 5000;

/** The wait before try number `attempt` (0 is the first after a loss), in ms. `random` is in [0, 1). */
export function backoff(attempt: number, random: number): number {
  const full = Math.min(MAX_DELAY, FIRST_DELAY * 2 ** Math.min(attempt, 10));
  // Between 75% and 100%, so that a restarted server isn't met by everyone at once.
  return Math.round(full * (0.75 + 0.25 * random));
}

export function step(link: Link, what: Happening, random: number): [Link, Effect[]] {
  if (link.state === 'done') return [link, []];
  switch (what) {
    case 'start':
      return link.state === 'idle' ? [{ state: 'connecting', attempt: 0 }, [{ do: 'connect' }]] : [link, []];
    case 'greeted':
      return link.state === 'connecting' ? [{ state: 'open' }, []] : [link, []];
    case 'lost': {
      if (link.state !== 'open' && link.state !== 'connecting') return [link, []];
      const attempt = link.state === 'open' ? 0 : link.attempt;
      const delay = backoff(attempt, random);
      return [{ state: 'waiting', attempt, delay }, [{ do: 'wait', delay }]];
    }
    case 'timer':
      if (link.state !== 'waiting') return [link, []];
      return [{ state: 'connecting', attempt: link.attempt + 1 }, [{ do: 'connect' }]];
    case 'nudge':
      if (link.state !== 'waiting') return [link, []];
      return [{ state: 'connecting', attempt: 0 }, [{ do: 'cancelWait' }, { do: 'connect' }]];
    case 'finish': {
      const effects: Effect[] = link.state === 'waiting' ? [{ do: 'cancelWait' }] : [];
      if (link.state === 'open' || link.state === 'connecting') effects.push({ do: 'close' });
      return [{ state: 'done' }, effects];
    }
  }
}
