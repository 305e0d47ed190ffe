// What the gateway says, as JSON. Times are RFC 3339 strings, sizes bytes, durations seconds.

export interface User {
  id: number | string;
  username: string;
  email?: string;
  admin: boolean;
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

export interface ListedUser extends User {
  disabled: boolean;
  environments?: number;
  lastLoginAt?: string | null;
}

export interface SshKey {
  id: number | string;
  name: string;
  key?: string;
  fingerprint?: string;
  createdAt?: string;
}

/** What an environment may have, or those made from an image; 0 is no limit of that kind. */
export interface Rations {
  memoryBytes: number;
  /** Above it memory is reclaimed, and who uses it slowed down. */
  memoryHighBytes: number;
  cpus: number;
  pids: number;
  diskBytes: number;
  /** Bits per second. */
  netUpBits: number;
  netDownBits: number;
  /** Bytes and operations per second, of the node's disk. */
  ioReadBps: number;
  ioWriteBps: number;
  ioReadIops: number;
  ioWriteIops: number;
  netQuotaBytes: number;
  blkQuotaBytes: number;
  /** Capabilities of root inside besides the usual ones: NET_RAW for raw packets. */
  capAdd: string[];
}

export interface Image extends Rations {
  id: number | string;
  name: string;
  title: string;
  titleZh?: string;
  description: string;
  descriptionZh?: string;
  source: string;
  /** The registry speaks plain HTTP. */
  insecure?: boolean;
  command: string[] | null;
  logo: string;
  /** 0: the installation's own. */
  lifetimeSeconds: number;
  enabled: boolean;
  /** Order in the gallery. */
  position?: number;
}

export const states = ['queued', 'pulling', 'creating', 'running', 'stopping', 'deleted', 'failed', 'overstep'] as const;
export type State = (typeof states)[number];

export interface Environment extends Rations {
  id: string;
  name: string;
  image: string;
  title: string;
  titleZh?: string;
  logo: string;
  state: State;
  stage?: string;
  percent?: number;
  reason?: string;
  /** Which sentence the reason is, with what it holds; empty when it is somebody's own text. */
  reasonCode?: string;
  reasonValues?: Record<string, string>;
  hint?: string;
  node?: string;
  /** False: its node is away; it waits there unharmed. */
  nodeOnline?: boolean;
  address?: string;
  queuePosition?: number | null;
  createdAt: string;
  startedAt?: string | null;
  endedAt?: string | null;
  deadline?: string | null;
  /** How far the deadline can be moved. */
  latestDeadline?: string | null;
  idleTimeoutSeconds?: number;
  timings?: Record<string, number> | null;
}

export interface HistoryEntry {
  at: string;
  state: State;
  reason?: string;
  reasonCode?: string;
  reasonValues?: Record<string, string>;
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
  /** A snapshot follows: one message for each of `environments`; what is not listed is gone. */
  | { type: 'hello'; environments?: string[]; resync?: boolean }
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
  diskFree?: number;
  diskTotal?: number;
  /** Rations that it can't give, each with the reason. */
  lacks?: Record<string, string>;
  /** Has a tunnel to the gateway. */
  connected?: boolean;
  updatedAt?: string;
}

export interface AuditEntry {
  id?: number | string;
  at: string;
  username?: string;
  action: string;
  target?: string;
  detail?: string;
  remoteAddr?: string;
}

export const pending = (e: Environment): boolean => e.state === 'queued' || e.state === 'pulling' || e.state === 'creating';
/** What it is called on a page in `lang`. */
export const titleOf = (e: Environment, lang: string): string => (lang === 'zh' && e.titleZh) || e.title || e.image;
/** What it is called in sentences: its own name, since there may be several of one title. */
export const nameOf = (e: Environment): string => e.name || e.title || e.image;
/** Its node is not there just now. */
export const away = (e: Environment): boolean => e.nodeOnline === false && !!e.node;
/** Over: it will never run again. */
export const ended = (e: Environment): boolean => e.state === 'deleted' || e.state === 'overstep';
