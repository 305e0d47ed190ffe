// The keys that phones lack, as the bytes a terminal expects. Pure.

export type Arrow = 'up' | 'down' | 'left' | 'right';
export interface Modifiers {
  ctrl: boolean;
  alt: boolean;
}

const letters: Record<Arrow, string> = { up: 'A', down: 'B', right: 'C', left: 'D' };

/** An arrow key; `application` is the terminal's cursor key mode (DECCKM). */
export function arrow(which: Arrow, { ctrl, alt }: Modifiers, application: boolean): string {
  const modifier = 1 + (alt ? 2 : 0) + (ctrl ? 4 : 0);
  if (modifier > 1) return `\x1b[1;${modifier}${letters[which]}`;
  return `\x1b${application ? 'O' : '['}${letters[which]}`;
}

/** What typing `text` means with Ctrl or Alt held. Only a single character is changed: a paste is a paste. */
export function modify(text: string, { ctrl, alt }: Modifiers): string {
  if ([...text].length !== 1) return text;
  let out = text;
  if (ctrl) {
    const code = text.toUpperCase().charCodeAt(0);
    // @ A–Z [ \ ] ^ _ make the control characters 0–31; space counts as @, ? is delete.
    if (code >= 0x40 && code <= 0x5f) out = String.fromCharCode(code - 0x40);
    else if (text === ' ') out = '\x00';
    else if (text === '?') out = '\x7f';
    else if (text === '/' || text === '-') out = '\x1f';
  }
  return alt ? `\x1b${out}` : out;
}
