// What the gateway says, as JSON. Times are RFC 3339 strings, sizes bytes, durations seconds.

export interface User {
  id: number | string;
  username: string;
  email?: string;
  admin: boolean;
  disabled?: boolean;
  createdAt: string;
}

export interface Session {
  expiresIn: number;
  user: User;
}

export interface Config {
  registration: boolean;
  requireCode: boolean;
  version: string;
  /** Where the SSH door listens, host:port; the host may be empty or a wildcard. */
  sshAddr: string;
  maxEnvironments: number;
}

export interface SshKey {
  id: number | string;
  name: string;
  key?: string;
  fingerprint?: string;
  createdAt?: string;
}

export interface Image {
  id: number | string;
  name: string;
  title: string;
  description: string;
  source: string;
  command: string[] | null;
  logo: string;
  memoryBytes: number;
  cpus: number;
  pids: number;
  diskBytes: number;
  netQuotaBytes: number;
  blkQuotaBytes: number;
  lifetimeSeconds: number;
  enabled: boolean;
}

export const states = ['queued', 'pulling', 'creating', 'running', 'stopping', 'deleted', 'failed', 'overstep'] as const;
export type State = (typeof states)[number];

export interface Environment {
  id: string;
  name: string;
  image: string;
  title: string;
  logo: string;
  state: State;
  stage?: string;
  percent?: number;
  reason?: string;
  hint?: string;
  node?: string;
  address?: string;
  queuePosition?: number | null;
  createdAt: string;
  startedAt?: string | null;
  endedAt?: string | null;
  deadline?: string | null;
  idleTimeoutSeconds?: number;
  memoryBytes: number;
  cpus: number;
  pids: number;
  timings?: Record<string, number> | null;
}

export interface HistoryEntry {
  at: string;
  state: State;
  reason?: string;
}

export interface SessionInfo {
  id: string;
  args: string[] | null;
  tty: boolean;
  exited: boolean;
  exitCode?: number;
  createdAt?: string;
}

export interface Stats {
  cpuPercent: number;
  memoryBytes: number;
  memoryLimit: number;
  rxBytes: number;
  txBytes: number;
  pids: number;
}

export type FeedMessage =
  | { type: 'hello' }
  | { type: 'environment'; environment: Environment }
  | { type: 'stats'; environment: string; stats: Stats };

export interface Node {
  name: string;
  version?: string;
  address?: string;
  freeMemory?: number;
  totalMemory?: number;
  cpus?: number;
  environments?: number;
  maxEnvironments?: number;
  updatedAt?: string;
}

export interface AuditEntry {
  id?: number | string;
  at: string;
  actor?: string;
  username?: string;
  action: string;
  target?: string;
  detail?: string;
  remoteAddr?: string;
  ip?: string;
}

export const pending = (e: Environment): boolean => e.state === 'queued' || e.state === 'pulling' || e.state === 'creating';
/** Over: it will never run again. */
export const ended = (e: Environment): boolean => e.state === 'deleted' || e.state === 'overstep';
