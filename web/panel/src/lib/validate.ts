// The gateway's rules for what people type, checked as they type. The gateway checks again.
import type { Key } from './i18n/dict.ts';

type Problem = Key | undefined;

/** 3–32 of a–z 0–9 _ -, a letter first. */
export function username(value: string): Problem {
  if (value === '') return 'auth.usernameNeeded';
  if (!/^[a-z]/.test(value)) return 'auth.usernameStart';
  if (!/^[a-z0-9_-]*$/.test(value)) return 'auth.usernameChars';
  if (value.length < 3) return 'auth.usernameShort';
  if (value.length > 32) return 'auth.usernameLong';
  return undefined;
}

/** At least 8 characters, as the gateway counts them: code points. */
export function password(value: string): Problem {
  return [...value].length < 8 ? 'auth.passwordRule' : undefined;
}

export function email(value: string, needed: boolean): Problem {
  if (value === '') return needed ? 'auth.emailNeeded' : undefined;
  return /^[^\s@]+@[^\s@]+\.[^\s@]+$/.test(value) ? undefined : 'auth.emailBad';
}

/** One line of OpenSSH's authorized_keys, without options. */
export function publicKey(value: string): Problem {
  const key = value.trim();
  if (/PRIVATE KEY/.test(key)) return 'account.keyPrivate';
  return /^(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) [A-Za-z0-9+/]{40,}={0,2}( [^\n]*)?$/.test(key)
    ? undefined
    : 'account.keyBad';
}

/** An image's name: a slug that can stand behind the + of an ssh user. */
export function imageName(value: string): Problem {
  if (value === '') return 'admin.required';
  return /^[a-z0-9][a-z0-9._-]*$/.test(value) ? undefined : 'admin.nameBad';
}
