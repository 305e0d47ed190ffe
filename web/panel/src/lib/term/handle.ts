// What the frame around a terminal may ask of it.
import type { TermState } from './connection.ts';

export interface TerminalHandle {
  focus(): void;
  /** Sends text as if typed; `paste` lets programs know it was pasted. */
  send(text: string): void;
  paste(text: string): void;
  applicationCursor(): boolean;
  search(query: string, options: { back?: boolean; caseSensitive?: boolean; typing?: boolean }): void;
  clearSearch(): void;
  selection(): string;
}

export interface TerminalEvents {
  onready: (handle: TerminalHandle) => void;
  onstate: (state: TermState) => void;
  /** How many matches the search has, and which is shown (-1: none). */
  onmatches: (index: number, count: number) => void;
  /** Enter was pressed after the shell's end. */
  onagain: () => void;
}
